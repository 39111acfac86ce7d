"""The published experiments, run again and printed beside the published figures.

    hfcore reproduce curves-log            Martens' own CURVES log, iteration by iteration
    hfcore reproduce martens2010-table2    training and test errors of the three autoencoders

``run.py`` trains one autoencoder with one optimiser (``trainers.py``), resumable to the bit; the
other files say what is published and put it beside what came out.
"""
