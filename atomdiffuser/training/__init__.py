"""Training on simulated pairs. `python -m atomdiffuser.training` needs torch, numpy, scipy, pandas, safetensors."""
