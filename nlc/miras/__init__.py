"""`nlc miras`: memories from four choices, each a spec; which are one, which have a name, which are
good.

choices -> law or spec -> normal form -> which are the same -> table, page; and on request a recall
task trains a small model around each.
"""
