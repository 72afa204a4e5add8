"""Exchanges: how a worker and the score table stay in touch. One contract, one file each."""
