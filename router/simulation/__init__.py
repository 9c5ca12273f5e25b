"""What would have happened: the product's own decision over a simulated engine, beside the common rules of thumb."""
