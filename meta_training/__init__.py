"""The meta-training job: learns a rater by meta-gradients, exports it, measures what it is worth."""
