"""The initialisation of echo-state networks, for training every weight with momentum."""

from __future__ import annotations

import torch
from torch import Tensor

from hfcore.arguments import naming_options
from hfcore.draws import check_scale
from hfcore.init.common import check_entries, check_model, is_recurrent, normal, zero_biases
from hfcore.losses import Loss
from hfcore.models.rnn import RNN
from hfcore.spectral import esn_recurrence

# A class that is never asked for starts at this frequency: its logarithm is −11.5.
_LEAST_FREQUENCY = 1e-5


@naming_options
@torch.no_grad()
def esn_(
    model: RNN,
    generator: torch.Generator,
    *,
    fan_in: int = 15,
    spectral_radius: float = 1.1,
    input_scale: float = 0.001,
    output_scale: float = 0.1,
    mean_target: float | Tensor = 0.0,
    loss: Loss | None = None,
) -> None:
    """ESN-style initialisation of an hf.RNN (Sutskever et al. 2013, table 4), in place.

    W_hh has ``fan_in`` incoming weights a unit (all where there are no more), N(0, 1) scaled to
    the ``spectral_radius``; W_hx is dense N(0, input_scale²), W_yh dense N(0, output_scale²); b_h
    and b_init are 0. b_y makes the constant output the ``mean_target`` (a number or a tensor
    ``[k]``): itself without a ``loss`` or for squared error, its logit for logistic cross-entropy,
    and the logarithm of the class frequencies for softmax, which are raised to at least 1e-5.

    The paper's input scale is 0.001 for addition and multiplication, 0.1 for memorisation;
    :func:`hfcore.presets.esn2013` gives the options of a problem.

    W_hh is exactly :func:`esn_recurrence` of the same generator. Raises TypeError or ValueError
    naming the argument that is wrong.

    Notes:

    1. Table 4 does not say of which distribution the values of W_hh are before they are scaled;
       N(0, 1) as in the other rows.
    2. b_init stands for W_hh h_{−1}, which the table does not mention: the hidden state starts
       at zero.
    3. "Average of outputs" is taken through the inverse of the output nonlinearity, so that the
       mean of the predictions, not of their logits, is the mean of the targets.
    """
    if not (is_recurrent(model) and isinstance(getattr(model, "W_hh", None), Tensor)):
        raise TypeError(f"model: got {type(model).__name__}, need an hf.RNN")
    check_model(model, generator)
    check_scale("input_scale", input_scale)
    check_scale("output_scale", output_scale)
    bias = _output_bias(mean_target, loss, model.output_size)
    index, value = esn_recurrence(model.hidden_size, fan_in, spectral_radius, generator)
    if model.sparse:
        check_entries(model, fan_in)
        model.set_recurrence(index, value)
    else:
        dense = torch.zeros(model.W_hh.shape, dtype=torch.float64, device="cpu")
        model.W_hh.copy_(dense.scatter_(1, index.long(), value))
    model.W_hx.copy_(input_scale * normal(model.W_hx, generator))
    model.W_yh.copy_(output_scale * normal(model.W_yh, generator))
    zero_biases(model)
    model.b_y.copy_(bias)


def _output_bias(mean_target: float | Tensor, loss: Loss | None, k: int) -> Tensor:
    """The outputs s ``[k]`` at which a model of this loss predicts the mean target."""
    mean = torch.as_tensor(mean_target, dtype=torch.float64, device="cpu")
    if mean.ndim > 1 or mean.numel() not in (1, k):
        raise ValueError(f"mean_target: got shape {list(mean.shape)}, need a number or [{k}]")
    if not bool(mean.isfinite().all()):
        raise ValueError(f"mean_target: got {mean.tolist()}, need finite numbers")
    if loss is not None:
        loss.check_mean("mean_target", mean)
        mean = loss.best_constant(mean.expand(k), _LEAST_FREQUENCY)
    return mean.expand(k)
