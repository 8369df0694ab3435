"""A series of checkpoints through training: when a learner appears, where, and the loss with it."""
