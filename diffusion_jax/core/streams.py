"""The numbers of every random stream of the package, in one table.

A random number is drawn from a key into which numbers have been folded with `jax.random.fold_in`:
the step of training, the index of the example, and one of the constants below, which says what the
number is for. Two draws from one key must have different constants. The values are part of every
recorded result: to change one is to change the samples and the losses of a given seed.
"""

from __future__ import annotations

# ---- training: folded into the key of an example
EXAMPLE_OBJECTIVE = 0  # the key of the objective's own draws, which are listed below
EXAMPLE_CONDITION_DROPOUT = 1  # whether the condition is replaced by the null condition
EXAMPLE_NETWORK_DROPOUT = 2  # the network's dropout, from the first example's key
EXAMPLE_LATENT = 3  # the draw from an encoder's posterior
EXAMPLE_AUGMENTATION = 4  # the distortion of an image
EXAMPLE_MASK = 5  # the mask of an inpainting model's condition

# ---- objectives: folded into the objective's key
OBJECTIVE_TIME = 0  # t
OBJECTIVE_NOISE = 1  # eps
OBJECTIVE_SECOND_TIME = 2  # s of the objectives with two times
OBJECTIVE_EQUAL_TIMES = 3  # whether the two times are equal

# ---- training: everything else
ROLLBACK = 2**32  # minus the number of the attempt: above every step, which counts from 0
HELD_OUT = 1  # added to the seed, for the loss on held-out data
INIT_DISCRIMINATOR = 1  # folded into the key of the parameters

# ---- sampling: folded into the key of an image. The numbers from 0 up are those of the steps
PRIOR = 0x7FFFFFFF  # x_T, the latent of a decoder, and the noise of SDEdit
BROWNIAN_PATH = 0x7FFFFFFE
MEASUREMENT_NOISE = 0x7FFFFFFD
EDIT_DRAW = 2**20  # plus the number of the draw, for several edits of one image
DECODER = 0  # what an autoencoder's likelihood draws

# ---- sampling: folded into the key of a step. The numbers from 1 up are those of the path's parts
STEP_EXTRA = 0x10000  # plus the index i of Noise.extra(i)

# ---- inverse problems: indices of Noise.extra within a step. Those of correctors are below
EXTRA_REPLACED = 0x1000  # the measured part of x_s, in `replacement`
EXTRA_REPAINT = 0x2000  # plus the number of the pass, for the way back up
EXTRA_PASSES = 0x10000  # where the moves of RePaint's passes begin; each has EXTRA_PASS numbers:
EXTRA_PASS = 64  # 8 parts of the path, then the sampler's own extra noise, then the replacement
EXTRA_PASS_PARTS = 8

# ---- likelihoods: folded into the key of an image
LIKELIHOOD_PROBES = 0  # of the trace estimator
LIKELIHOOD_DEQUANTIZATION = 1
BOUND_LEVEL = 0  # of continuous_vlb, within a stratum: where the log-SNR lies in it
BOUND_NOISE = 1  # of continuous_vlb, within a stratum: eps

# ---- targets: folded into the key of a draw
TARGET_NOISE = 0
TARGET_COMPONENT = 1  # which component of a mixture, or which example of a data set
