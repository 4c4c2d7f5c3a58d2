"""Claim calibration: how often does a claim come out "supported" when it is false, and when it is true?

    wrong-heads      random heads that are not the mechanism, in the specimen whose mechanism is written down
    random-twins     the best heads found on train, in networks with village's shape and random weights
    permuted         the best heads found on train, in village with answers that belong to other prompts
    synthetic        tables whose true effect is exactly the bound
    power            the true mechanism; the same less a head; the same diluted with random heads

Runs of the model are shared by all claims of a table: a claim is a draw of rows, and its controls are other rows.
"""
