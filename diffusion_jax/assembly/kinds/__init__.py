"""The kinds of model: each file has the initialization, the loss and the drawing of samples of one
kind.
"""
