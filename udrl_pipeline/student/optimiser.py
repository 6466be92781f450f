"""Muon for a student's weight matrices and AdamW for the rest, as the one optimiser that transformers' Trainer wants."""

from typing import Any

#: Parts of the names of matrices that are tables, one row a token or a place, and are not what Muon was made for.
TABLES = ("wte", "wpe", "embed", "lm_head")


def muon(model: Any, learning_rate: float, weight_decay: float) -> Any:
    """An optimiser whose steps on weight matrices are orthogonal (Muon: Jordan et al. 2024), scaled to the size of AdamW's
    (arXiv 2502.16982, section 2.2) so that one learning rate suits both; embeddings, biases and norms are left to AdamW."""
    import torch

    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    matrices = [weight for name, weight in named if weight.ndim == 2 and not any(table in name for table in TABLES)]
    chosen = {id(weight) for weight in matrices}
    rest = [weight for _, weight in named if id(weight) not in chosen]
    return _together()(
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, weight_decay=weight_decay),
    )


def _together() -> Any:
    import torch

    class Together(torch.optim.Optimizer):
        """Several optimisers, each with parameters of its own, that step together."""

        def __init__(self, *parts: torch.optim.Optimizer) -> None:
            self.parts = parts
            super().__init__([group for part in parts for group in part.param_groups], {})

        def step(self, closure: Any = None) -> None:
            for part in self.parts:
                part.step()

        def state_dict(self) -> dict[str, Any]:
            return {"parts": [part.state_dict() for part in self.parts]}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            for part, state in zip(self.parts, state_dict["parts"], strict=True):
                part.load_state_dict(state)
            # a schedule writes learning rates into the groups of the whole: they stay those of the parts
            self.param_groups = [group for part in self.parts for group in part.param_groups]

    return Together
