"""The two attentions of CSAT: over a 7x7 grid inside convolution blocks, and over all positions."""

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

SpatialAttentionKind = Literal["alive", "inert"]

GRID = 7
GRID_WIDTH = 8


class SpatialAttention(nn.Module):
    """One attention map per tile, from the channel mean and maximum of a feature map.

    Mean and maximum over the channels -> average pooling to 7x7 -> 7x7 convolution to one map -> a small
    transformer over the 49 positions -> bilinear resampling to the size of the input. Every step works inside
    one tile, so a tile's map does not depend on the rest of its batch.

    `kind="alive"` (the default of this library) gives a gate in (0, 2); see `LiveGrid`. `kind="inert"` has
    the published form, whose transformer adds a constant; see `InertGrid`.
    """

    def __init__(self, kind: SpatialAttentionKind) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(2, 1, GRID, padding=GRID // 2, bias=False)
        self.grid = LiveGrid() if kind == "alive" else InertGrid()

    def grid_map(self, features: Tensor) -> Tensor:
        """Return the attention map [B, 1, 7, 7] of `features` [B, C, H, W], before resampling."""
        summary = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], dim=1)
        # contiguous: a channels-last pooling of two channels is slow, and the reshapes below need it
        pooled = F.adaptive_avg_pool2d(summary.contiguous(), GRID)
        attention: Tensor = self.grid(self.squeeze(pooled))
        return attention

    def forward(self, features: Tensor) -> Tensor:
        """Return the map [B, 1, H, W] that multiplies `features` [B, C, H, W]."""
        size = features.shape[-2:]
        return F.interpolate(self.grid_map(features), size=size, mode="bilinear", align_corners=False)


class LiveGrid(nn.Module):
    """A pre-LayerNorm transformer over the 49 positions of a one-channel grid, ending in a gate in (0, 2).

    Our replacement for the published form, whose transformer is inert: each position becomes a token of width 8 plus a
    learned position, so that LayerNorm preserves the input's differences, and one head attends over the tile's 49
    tokens. The token is projected to one number s and the gate is 2 * sigmoid(s). The projection is initialized small,
    so the gate starts close to 1 and a deep stack trains like one without gates.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, GRID_WIDTH)
        self.position = nn.Parameter(torch.zeros(1, GRID * GRID, GRID_WIDTH))
        self.norm1 = nn.LayerNorm(GRID_WIDTH, eps=1e-6)
        self.attention = SelfAttention(GRID_WIDTH, heads=1, head_dim=GRID_WIDTH)
        self.norm2 = nn.LayerNorm(GRID_WIDTH, eps=1e-6)
        self.mlp = Mlp(GRID_WIDTH, 4 * GRID_WIDTH)
        self.norm3 = nn.LayerNorm(GRID_WIDTH, eps=1e-6)
        self.score = nn.Linear(GRID_WIDTH, 1)

    def init_weights(self) -> None:
        """Initialize for the width of 8; the 0.02 that suits wide layers would make all tokens nearly equal."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and name != "score":
                trunc_normal_(module.weight, std=module.in_features**-0.5)
        trunc_normal_(self.position, std=0.02)
        trunc_normal_(self.score.weight, std=0.02)

    def forward(self, grid: Tensor) -> Tensor:
        """Map [B, 1, 7, 7] to a gate [B, 1, 7, 7] in (0, 2)."""
        tokens = self.embed(grid.flatten(2).transpose(1, 2)) + self.position
        tokens = tokens + self.attention(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        score = self.score(self.norm3(tokens))
        return 2 * torch.sigmoid(score.transpose(1, 2).reshape(grid.shape))


class InertGrid(nn.Module):
    """The published form: a transformer over one-channel tokens, each normalized by a LayerNorm of width one.

    A LayerNorm over one channel returns its bias whatever the input, so both residual branches add the same
    7x7 map to every input: the gate is the grid itself plus a constant. It exists for comparison with `LiveGrid`.
    Unlike the code published with the model's second version, attention stays within each tile instead of crossing
    the batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(1)
        self.position = nn.Conv2d(1, 1, 3, padding=1)
        self.qkv = nn.Linear(1, 3, bias=False)
        self.norm2 = nn.LayerNorm(1)
        self.mlp = Mlp(1, 4)

    def forward(self, grid: Tensor) -> Tensor:
        """Map [B, 1, 7, 7] to [B, 1, 7, 7]: the input plus a map that does not depend on it."""
        tokens = grid.flatten(2).transpose(1, 2)
        normed = self.norm1(tokens).transpose(1, 2).reshape(grid.shape)
        placed = (normed + self.position(normed)).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(placed).unsqueeze(1).chunk(3, dim=-1)
        tokens = tokens + F.scaled_dot_product_attention(query, key, value).squeeze(1)
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).reshape(grid.shape)


class SelfAttention(nn.Module):
    """Multi-head self-attention over all tokens of a tile: [B, N, C] -> [B, N, C]."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.project = nn.Linear(heads * head_dim, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv.unbind(0))
        projected: Tensor = self.project(attended.transpose(1, 2).reshape(batch, count, -1))
        return projected


class TransformerBlock(nn.Module):
    """Depthwise 3x3 position encoding with identity, then pre-LayerNorm self-attention and a 4x MLP."""

    def __init__(self, channels: int, heads: int, head_dim: int, drop_path: float) -> None:
        super().__init__()
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attention = SelfAttention(channels, heads, head_dim)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape; every position attends to all others of its tile."""
        height, width = features.shape[-2:]
        tokens = (features + self.position(features)).flatten(2).transpose(1, 2)
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens)))
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens.transpose(1, 2).unflatten(2, (height, width))
