"""Pre-training of autoencoders by a stack of restricted Boltzmann machines.

>>> model = hf.Autoencoder([784, 400, 200, 100, 50, 25, 6])
>>> result = hf.pretrain(model, hf.data.curves(), run_dir="runs/pretraining")

``rbm.py`` is one machine, ``contrastive_divergence.py`` its updates, ``settings.py`` the constants
by layer, ``stack.py`` what happens in an epoch, ``run.py`` the whole with its folder.
"""

from __future__ import annotations

from hfcore.pretraining.contrastive_divergence import ContrastiveDivergence
from hfcore.pretraining.rbm import RBM
from hfcore.pretraining.run import PretrainResult, pretrain
from hfcore.pretraining.stack import unroll_

__all__ = ["RBM", "ContrastiveDivergence", "PretrainResult", "pretrain", "unroll_"]
