"""The published experiments, run again and printed beside the published figures.

    hfcore reproduce curves-log            Martens' own CURVES log, iteration by iteration
    hfcore reproduce martens2010-table2    training and test errors of the three autoencoders
    hfcore reproduce fig2                  error against seconds, with and without pre-training
    hfcore reproduce fig3                  Martens & Sutskever (2011): minibatches to success
    hfcore reproduce table1-2011           next-step prediction: RNN + HF and LSTM + GD
    hfcore reproduce table1, table2, table3    Sutskever et al. (2013): momentum on autoencoders
    hfcore reproduce table5                momentum on recurrent nets, from the same paper
    hfcore reproduce fig5                  CG against NAG on a quadratic of a Hessian-free run

``training.py`` trains one autoencoder through ``hf.train``; ``tuning.py`` searches learning rates
and then trains more seeds, all runs of a problem as one sweep. ``published.py`` says what is
published; a module a table puts it beside what came out, and ``commands/`` has a command for each.
Nothing here takes more from hfcore than its public names.
"""
