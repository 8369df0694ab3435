"""A frozen model of sequences as a learner from few-shot pairs, with tuned tokens around them."""
