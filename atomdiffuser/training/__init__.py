"""Training on simulated pairs. Needs torch, numpy and safetensors alone; `python -m atomdiffuser.training` starts it."""
