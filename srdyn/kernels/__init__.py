"""Update rules and spectra: the oracle beside its compiled and Triton twins."""
