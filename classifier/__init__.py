"""The learner: scores prompts, learns from labelled logs. Knows nothing of HTTP, providers, GPUs or the router."""
