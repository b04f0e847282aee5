"""The training engine and what stands around it: metrics, TensorBoard events, drawing."""
