"""Symmetries of a network: exchanges and rescalings of its units that leave its outputs as they are."""

__all__: list[str] = []
