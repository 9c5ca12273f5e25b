"""Learning from the gateway's own traffic: shadow runs and judges beside it, labels out of its books."""
