"""Settings of all tests: one thread, because on a busy machine every parallel region can wait for a time slice."""

import torch

torch.set_num_threads(1)
