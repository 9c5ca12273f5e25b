"""The house engine: supervised, measured, admitted to. Knows nothing of the router or the classifier."""
