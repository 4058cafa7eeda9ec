"""The pictures of the pages on bricks: `python docs/site/pictures.py`. The bricks compute their curves and maps."""

from __future__ import annotations

from pathlib import Path

import torch
from drawing import BLUE, GREEN, GREY, INK, ORANGE, PALE, Sheet
from torch import Tensor

from loquela.layers import feedforward, masks, norms, positions
from loquela.layers.counts import NGramCounts, count
from loquela.layers.quantized import QuantizedLinear
from loquela.training.optimizers import orthogonalise

PLACE = Path(__file__).resolve().parent.parent / "pictures" / "bricks"
WARM, COOL, LEAF = "#fbe6d8", "#dcebf6", "#d9f0e8"


def positional() -> None:
    """Tables, angles and biases of the kinds of positions."""
    s = Sheet(860, 500)
    table = positions.sinusoids(48, 64)
    s.text(150, 24, "sinusoidal: a vector for each place", bold=True)
    s.map(table[:, ::2].T.tolist(), 20, 38, 5.4, 5.4)
    s.text(150, 228, "place →, dimension ↓", size=11, colour=GREY)
    s.text(430, 24, "rotary: the angle of each pair", bold=True)
    angles = torch.arange(48)[:, None] * positions.rotary_frequencies(24)
    s.map(angles.cos().T.tolist(), 310, 38, 5.0, 14.4)
    s.text(430, 228, "place →, pair ↓ (its cosine)", size=11, colour=GREY)
    s.text(705, 24, "ALiBi: a penalty for distance", bold=True)
    bias = positions.alibi_bias(4, 24, 24)[1]
    causal = masks.causal_mask(24, 24)
    shown = torch.where(causal, bias / 6, torch.zeros(()))
    s.map(shown.tolist(), 600, 38, 8.6, 7.2)
    s.text(705, 228, "key →, query ↓ (one head)", size=11, colour=GREY)
    span, area = (-60.0, 60.0, 0.0, 32.0), (60.0, 290.0, 320.0, 150.0)
    brick = positions.RelativeBias(1, bidirectional=True)
    offsets = torch.arange(-60, 61)
    s.text(220, 268, "T5: distances share buckets", bold=True)
    s.axes(area, span, "key's place minus query's", "bucket", (-60, 0, 60), (0, 16, 31))
    s.curve(offsets.tolist(), brick.bucket(offsets).tolist(), area, span, BLUE)
    span, area = (0.0, 60.0, 0.0, 1.0), (490.0, 290.0, 320.0, 150.0)
    x, y = torch.randn(2, 64, generator=torch.Generator().manual_seed(4))
    y = x + 0.4 * y
    turned = positions.Rotary.at(torch.arange(64), positions.rotary_frequencies(64))
    q = positions.rotate(x.expand(1, 1, 64, 64), turned)[0, 0]
    k = positions.rotate(y.expand(1, 1, 64, 64), turned)[0, 0]
    first, second = (q[0] @ k.T), (q @ k.T)
    scale = float(first[0])
    s.text(650, 268, "rotary: q · k depends on the distance only", bold=True)
    s.axes(area, span, "distance of the two places", "", (0, 20, 40, 60), (0, 1))
    s.curve(range(60), (first[:60] / scale).tolist(), area, span, BLUE, 5)
    fourth = torch.tensor([float(second[4, 4 + d]) for d in range(60)])
    s.curve(range(60), (fourth / scale).tolist(), area, span, ORANGE, 1.5)
    s.text(650, 494, "query at place 0 (blue) and at place 4 (orange): one curve", size=11, colour=GREY)
    s.write(PLACE / "positions.svg")


def who_sees_whom() -> None:
    """Masks of four kinds."""
    s = Sheet(860, 230)
    both = torch.ones(12, 12, dtype=torch.bool)
    segments = torch.tensor([[0] * 5 + [1] * 7])
    kinds = (
        ("both ways (BERT)", both),
        ("causal (GPT)", masks.causal_mask(12, 12)),
        ("sliding window of 4", masks.causal_mask(12, 12, window=4)),
        ("two documents in one row", masks.causal_mask(12, 12, segments=segments)[0, 0]),
    )
    for i, (name, mask) in enumerate(kinds):
        s.text(110 + 213 * i, 24, name, bold=True)
        s.map([[0.75 if seen else 0.06 for seen in row] for row in mask.tolist()], 32 + 213 * i, 40, 13)
    s.text(430, 220, "query ↓ may see key →", size=12, colour=GREY)
    s.write(PLACE / "masks.svg")


def activations() -> None:
    """Curves of the activations, and the two forms of a feed-forward."""
    s = Sheet(860, 290)
    area, span = (50.0, 40.0, 330.0, 190.0), (-4.0, 4.0, -0.6, 4.0)
    x = torch.linspace(-4, 4, 161)
    s.axes(area, span, "x", "", (-4, -2, 0, 2, 4), (0, 2, 4))
    for i, (name, colour) in enumerate(
        zip(("relu", "gelu", "silu", "relu2"), (GREY, BLUE, ORANGE, GREEN), strict=True)
    ):
        y = feedforward.ACTIVATIONS[name](x)
        inside = y <= 4
        s.curve(x[inside].tolist(), y[inside].tolist(), area, span, colour)
        s.text(90, 70 + 20 * i, name, colour=colour, anchor="start", bold=True)
    for left, gated in ((440, False), (640, True)):
        s.text(left + 95, 28, "gated (SwiGLU)" if gated else "plain", bold=True)
        s.box(left + 55, 240, 80, 30, "x")
        s.box(left + (105 if gated else 50), 175, 90, 34, "up", fill=COOL)
        if gated:
            s.box(left, 175, 90, 34, "gate", fill=WARM)
            s.arrow((left + 95, 240), (left + 45, 212))
            s.arrow((left + 95, 240), (left + 150, 212))
            s.text(left + 28, 160, "silu", size=12, colour=ORANGE)
            s.arrow((left + 45, 175), (left + 87, 130))
            s.arrow((left + 150, 175), (left + 105, 130))
            s.plus(left + 95, 122, "×")
            s.arrow((left + 95, 110), (left + 95, 92))
        else:
            s.arrow((left + 95, 240), (left + 95, 212))
            s.arrow((left + 95, 175), (left + 95, 92))
            s.text(left + 105, 138, "gelu", size=12, colour=ORANGE, anchor="start")
        s.box(left + 50, 56, 90, 34, "down", fill=COOL)
    s.write(PLACE / "feedforward.svg")


def experts() -> None:
    """A router and its experts."""
    s = Sheet(760, 260)
    s.box(330, 215, 100, 32, "token's x")
    s.box(60, 130, 120, 40, "router\nsoftmax", fill=WARM)
    s.arrow((330, 231), (120, 231), (120, 173))
    for i in range(6):
        chosen = i in (1, 4)
        x = 220 + 88 * i
        s.box(
            x,
            125,
            76,
            46,
            f"expert {i + 1}",
            fill=COOL if chosen else "#fff",
            line=BLUE if chosen else "#cfd8e0",
            ink=INK if chosen else GREY,
        )
        if chosen:
            s.arrow((380, 215), (x + 38, 174))
            s.arrow((x + 38, 125), (445, 64))
    s.text(275, 100, "0.7", size=12, colour=ORANGE)
    s.text(565, 100, "0.3", size=12, colour=ORANGE)
    s.plus(450, 54)
    s.arrow((450, 43), (450, 18))
    s.text(470, 20, "the sum, weighted by the router", size=12, colour=GREY, anchor="start")
    s.text(120, 118, "0.02 0.61 0.04 … 0.26 …", size=11, colour=GREY)
    s.write(PLACE / "experts.svg")


def normalising() -> None:
    """What both norms do to the same vectors."""
    s = Sheet(860, 250)
    x = torch.randn(60, 32, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.5, 3, 60)[:, None] + 1.5
    kinds = (
        ("vectors of a stream", x),
        ("RMSNorm: root mean square 1", norms.RMSNorm(32)(x)),
        ("LayerNorm: mean 0, deviation 1", norms.LayerNorm(32)(x)),
    )
    for i, (name, values) in enumerate(kinds):
        area, span = (40.0 + 280 * i, 50.0, 230.0, 140.0), (0.0, 59.0, -8.0, 8.0)
        s.text(155 + 280 * i, 26, name, bold=True, size=12)
        s.axes(area, span, "token", "", (), (-8, 0, 8))
        for column in range(0, 32, 2):
            s.curve(range(60), values[:, column].clamp(-8, 8).tolist(), area, span, "#b9d6ea", 0.8)
        s.curve(range(60), values.mean(1).tolist(), area, span, ORANGE, 2)
        s.curve(range(60), values.pow(2).mean(1).sqrt().tolist(), area, span, BLUE, 2)
    s.text(430, 240, "each pale line a dimension; orange: mean; blue: root mean square", size=12, colour=GREY)
    s.write(PLACE / "norms.svg")


def block_kinds() -> None:
    """Where the norms stand in three kinds of block."""
    s = Sheet(860, 420)
    for i, (name, who, parts) in enumerate(
        (
            ("pre-norm", "GPT-2, LLaMA, T5", (["norm", "attention"], ["norm", "feed-forward"])),
            ("post-norm", "2017, BERT, BART", (["attention"], ["feed-forward"])),
            ("sandwich", "Gemma 2", (["norm", "attention", "norm"], ["norm", "feed-forward", "norm"])),
        )
    ):
        left, y = 40 + 285 * i, 385.0
        s.text(left + 105, 22, name, bold=True, size=15)
        s.text(left + 105, 40, who, size=12, colour=GREY)
        s.text(left + 40, y + 18, "x", bold=True)
        for half in parts:
            start = y
            for j, part in enumerate(half):
                top = start - 44 - 38 * j
                s.box(left + 90, top, 120, 28, part, fill=WARM if part == "norm" else COOL)
                if j:
                    s.arrow((left + 150, top + 38), (left + 150, top + 30))
            top = start - 44 - 38 * (len(half) - 1)
            s.arrow((left + 40, start - 10), (left + 150, start - 10), (left + 150, start - 15))
            joint = top - 20
            s.arrow((left + 150, top), (left + 150, joint), (left + 52, joint))
            y = joint - 12
            s.arrow((left + 40, start), (left + 40, joint + 11), head=True)
            s.plus(left + 40, joint)
            if name == "post-norm":
                s.box(left - 10, joint - 54, 100, 28, "norm", fill=WARM)
                s.arrow((left + 40, joint - 10), (left + 40, joint - 24))
                y = joint - 54
        s.arrow((left + 40, y), (left + 40, y - 18))
    s.write(PLACE / "blocks.svg")


def attention_flow() -> None:
    """Queries, keys, values, and the weighted sum."""
    s = Sheet(780, 300)
    words = ("the", "cat", "sat")
    weights = (0.1, 0.75, 0.15)
    for i, word in enumerate(words):
        y = 50 + 80 * i
        s.box(20, y, 70, 34, word)
        s.box(150, y - 12, 80, 26, "key", fill=COOL)
        s.box(150, y + 20, 80, 26, "value", fill=LEAF)
        s.arrow((90, y + 17), (148, y + 2))
        s.arrow((90, y + 17), (148, y + 32))
        s.arrow((232, y + 1), (340, 62 + 34 * i), colour=BLUE)
        s.box(342, 48 + 34 * i, 96 * weights[i] + 44, 26, f"{weights[i]:.2f}", fill=WARM)
        s.arrow((232, y + 33), (556, 205), colour=GREEN)
    s.box(150, 262, 80, 26, "query", fill=WARM)
    s.arrow((55, 248), (55, 275), (148, 275), dashed=True)
    s.arrow((232, 275), (390, 275), (390, 152), dashed=True)
    s.text(395, 36, "softmax( query · keys / √E )", size=13, bold=True)
    s.arrow((440, 110), (562, 194))
    s.plus(570, 205, "Σ")
    s.arrow((582, 205), (640, 205))
    s.text(646, 210, "what “sat” sees", size=13, anchor="start")
    s.text(560, 262, "values, weighted", size=12, colour=GREEN)
    s.write(PLACE / "attention.svg")


def recurrence() -> None:
    """One cell, unrolled over time."""
    s = Sheet(760, 190)
    for i, word in enumerate(("once", "upon", "a", "time")):
        x = 110 + 160 * i
        s.box(x, 75, 90, 44, "cell", fill=COOL)
        s.box(x + 10, 150, 70, 28, word)
        s.arrow((x + 45, 150), (x + 45, 121))
        s.arrow((x + 45, 75), (x + 45, 45))
        s.text(x + 45, 36, ("upon", "a", "time", ",")[i] + " ?", size=12, colour=ORANGE)
        s.arrow((x - 68, 97), (x - 2, 97))
        s.text(x - 35, 88, f"h{'₀₁₂₃'[i]}", size=13, colour=BLUE)
    s.arrow((682, 97), (735, 97))
    s.text(710, 88, "h₄", colour=BLUE)
    s.text(380, 20, "one state, of one size, is all that is kept", size=12, colour=GREY)
    s.write(PLACE / "recurrent.svg")


def smoothing() -> None:
    """Real probabilities of a small text by order, before and after smoothing."""
    text = "the cat sat on the mat . the dog sat on the log . the cat saw the dog ."
    words = text.split()
    vocabulary = sorted(set(words))
    ids = torch.tensor([vocabulary.index(word) for word in words]).numpy()
    levels = []
    for n, (keys, counts) in enumerate(count(ids, 3, len(vocabulary))):
        level = NGramCounts(len(keys), len(vocabulary))
        level.fill(keys, counts)
        levels.append((n, level))
    s = Sheet(860, 270)
    p = torch.full((1, len(vocabulary)), 1 / len(vocabulary))
    on = vocabulary.index("the")
    parents = [torch.tensor([0]), levels[0][1].find(torch.tensor([0]), torch.tensor([on]))]
    before = levels[0][1].find(torch.tensor([0]), torch.tensor([vocabulary.index("on")]))
    parents.append(levels[1][1].find(before, torch.tensor([on])))
    names = ("after how many words it comes", "after “the”", "after “on the”")
    for i, ((_, level), parent, name) in enumerate(zip(levels, parents, names, strict=True)):
        p = level.smooth(p, parent)
        left = 40 + 280 * i
        s.text(left + 115, 26, name, bold=True)
        s.text(
            left + 115,
            44,
            f"order {i + 1}, smoothed by the one before" if i else "order 1, over the uniform",
            size=11,
            colour=GREY,
        )
        for j, word in enumerate(vocabulary):
            y, share = 62 + 20 * j, float(p[0, j])
            s.text(left + 40, y + 11, word, size=12, anchor="end")
            s.box(left + 48, y, max(1.0, 180 * share / 0.6), 14, fill=COOL, line=BLUE)
            s.text(left + 54 + 180 * share / 0.6, y + 11, f"{share:.2f}", size=11, colour=GREY, anchor="start")
    s.write(PLACE / "ngrams.svg")


def thin_matrices() -> None:
    """LoRA beside a frozen matrix."""
    s = Sheet(760, 250)
    s.box(20, 112, 60, 32, "x")
    s.box(170, 30, 190, 90, "W, frozen\nout × in", fill=PALE)
    s.box(170, 150, 70, 44, "A\nr × in", fill=WARM)
    s.box(290, 150, 70, 44, "B\nout × r", fill=WARM)
    s.arrow((80, 120), (168, 76))
    s.arrow((80, 136), (168, 170))
    s.arrow((240, 172), (288, 172))
    s.text(265, 164, "r", size=12, colour=ORANGE)
    s.arrow((360, 76), (448, 118))
    s.arrow((360, 172), (448, 136))
    s.text(412, 178, "· α / r", size=12, colour=ORANGE)
    s.plus(460, 127)
    s.arrow((472, 127), (530, 127))
    s.box(532, 111, 60, 32, "y")
    s.text(
        170,
        228,
        "in = out = 4,096, r = 8:  16.8 million frozen, 65,536 tuned (0.4 %)",
        size=13,
        anchor="start",
        colour=GREY,
    )
    s.text(680, 120, "merged:", size=12, colour=GREY)
    s.text(680, 138, "W + α/r · B A", size=13)
    s.write(PLACE / "lora.svg")


def bottlenecks() -> None:
    """Adapters and IA³ in a block."""
    s = Sheet(860, 250)
    s.text(200, 24, "adapter: a small network behind each half", bold=True)
    for i, half in enumerate(("attention", "feed-forward")):
        x = 30 + 195 * i
        s.box(x, 160, 110, 36, half, fill=PALE)
        s.arrow((x + 55, 160), (x + 55, 128))
        s.box(x + 10, 98, 90, 28, "down", fill=WARM)
        s.arrow((x + 55, 98), (x + 55, 86))
        s.text(x + 108, 92, "relu", size=11, colour=ORANGE, anchor="start")
        s.box(x + 10, 56, 90, 28, "up", fill=WARM)
        s.arrow((x + 110, 178), (x + 165, 178), (x + 165, 70), (x + 102, 70), dashed=True)
    s.text(200, 230, "dim → dim / 16 → dim; up starts at zero", size=12, colour=GREY)
    s.text(640, 24, "IA³: only factors", bold=True)
    for i, (name, factor) in enumerate((("keys", "lₖ"), ("values", "lᵥ"), ("inner units", "l_ff"))):
        x = 480 + 125 * i
        s.box(x, 150, 100, 36, name, fill=PALE)
        s.arrow((x + 50, 150), (x + 50, 122))
        s.plus(x + 50, 110, "×")
        s.box(x + 20, 52, 60, 30, factor, fill=WARM)
        s.arrow((x + 50, 82), (x + 50, 98))
    s.text(640, 230, "one number per unit, starting at 1", size=12, colour=GREY)
    s.write(PLACE / "adapters.svg")


def before_the_text() -> None:
    """Soft prompts and prefixes."""
    s = Sheet(860, 230)
    for left, title, deep in (
        (20, "prompt tuning: vectors before the text", False),
        (450, "prefix tuning: keys and values, in every layer", True),
    ):
        s.text(left + 190, 24, title, bold=True)
        for layer in range(3):
            y = 60 + 44 * layer
            s.text(left + 4, y + 19, f"layer {3 - layer}", size=11, colour=GREY, anchor="start")
            for i in range(3):
                if deep:
                    s.box(left + 60 + 42 * i, y, 36, 28, "k v", fill=WARM, size=11)
                else:
                    s.box(left + 60 + 42 * i, y, 36, 28, "", fill="#fff", line="#d5dee6")
            for i in range(4):
                s.box(left + 200 + 48 * i, y, 42, 28, "", fill=COOL)
        for i in range(3):
            if deep:
                continue
            s.box(left + 60 + 42 * i, 192, 36, 28, "v" + "₁₂₃"[i], fill=WARM)
        for i, word in enumerate(("the", "cat", "sat", "on")):
            s.box(left + 200 + 48 * i, 192, 42, 28, word, size=12)
    s.write(PLACE / "soft-prompts.svg")


def kept() -> None:
    """What a cache saves."""
    s = Sheet(760, 210)
    words = ("once", "upon", "a", "time", ",")
    for i in range(5):
        s.text(110 + 64 * i, 32, words[i], size=13, bold=i == 4)
        s.box(84 + 64 * i, 48, 52, 30, "k v", fill=COOL if i < 4 else WARM)
        s.box(84 + 64 * i, 88, 52, 30, "k v", fill=COOL if i < 4 else WARM)
    s.text(40, 68, "layer 1", size=12, colour=GREY)
    s.text(40, 108, "layer 2", size=12, colour=GREY)
    s.text(210, 148, "kept from the steps before: never computed again", size=12, colour=BLUE)
    s.text(370, 172, "this step", size=12, colour=ORANGE)
    s.arrow((366, 160), (366, 122), colour=ORANGE)
    area, span = (490.0, 50.0, 220.0, 100.0), (0.0, 100.0, 0.0, 100.0)
    s.axes(area, span, "tokens written", "tokens computed in this step", (0, 100), ())
    s.curve([0, 100], [0, 100], area, span, GREY)
    s.curve([0, 100], [2, 2], area, span, BLUE, 3)
    s.text(640, 80, "without", size=12, colour=GREY)
    s.text(650, 140, "with", size=12, colour=BLUE)
    s.write(PLACE / "cache.svg")


def updates() -> None:
    """Singular values of a gradient, before and after Muon's iterations."""
    generator = torch.Generator().manual_seed(0)
    thin = torch.randn(96, 6, generator=generator) @ torch.randn(6, 64, generator=generator)
    gradient = thin + 0.3 * torch.randn(96, 64, generator=generator)
    before = torch.linalg.svdvals(gradient)
    s = Sheet(860, 275)
    area, span = (60.0, 50.0, 330.0, 160.0), (0.0, 63.0, 0.0, 1.3)
    s.text(225, 26, "directions of a gradient", bold=True)
    s.axes(area, span, "singular value, largest first", "size, in shares of the largest", (0, 32, 63), (0, 1))
    s.curve(range(64), (before / before[0]).tolist(), area, span, ORANGE)
    s.text(120, 150, "the gradient: a few directions are all", size=12, colour=ORANGE, anchor="start")
    area, span = (490.0, 50.0, 330.0, 160.0), (0.0, 63.0, 0.0, 1.6)
    s.text(655, 26, "after Muon's iterations", bold=True)
    s.axes(area, span, "singular value, largest first", "size", (0, 32, 63), (0, 1))
    for steps, colour in ((1, "#b9d6ea"), (2, "#7ab3d9"), (4, BLUE)):
        after = torch.linalg.svdvals(orthogonalise(gradient[None], steps)[0].float())
        s.curve(range(64), after.tolist(), area, span, colour)
    s.text(655, 262, "1, 2 and 4 iterations (darker): the steps become alike", size=12, colour=BLUE)
    s.write(PLACE / "optimizers.svg")


def few_bits() -> None:
    """A row of weights, and what 8 and 4 bits make of it."""
    s = Sheet(860, 250)
    linear = torch.nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(64, 64, generator=torch.Generator().manual_seed(2)))
    exact = linear.weight.detach().clone()
    rounded: dict[int, Tensor] = {}
    for bits in (8, 4):
        copy = torch.nn.Linear(64, 64, bias=False)
        copy.load_state_dict({"weight": exact})
        QuantizedLinear.adopt(copy, bits)
        rounded[bits] = copy.weight.detach()
    area, span = (60.0, 40.0, 330.0, 160.0), (-2.5, 2.5, -2.5, 2.5)
    s.text(225, 22, "a weight, and what is kept of it", bold=True)
    s.axes(area, span, "weight", "", (-2, 0, 2), (-2, 0, 2))
    order = exact[0].sort().indices
    for bits, colour in ((8, BLUE), (4, ORANGE)):
        xs, ys = exact[0][order], rounded[bits][0][order]
        steps = [(float(a), float(b)) for a, b in zip(xs, ys, strict=True) if abs(a) < 2.5 and abs(b) < 2.5]
        s.curve([x for x, _ in steps], [y for _, y in steps], area, span, colour)
    s.text(80, 62, "8 bits", colour=BLUE, anchor="start", bold=True)
    s.text(80, 82, "4 bits", colour=ORANGE, anchor="start", bold=True)
    area, span = (500.0, 40.0, 320.0, 160.0), (-0.25, 0.25, 0.0, 1.0)
    s.text(660, 22, "the error: how often, each at its own height", bold=True)
    s.axes(area, span, "kept minus weight", "", (-0.2, 0, 0.2), ())
    for bits, colour in ((8, BLUE), (4, ORANGE)):
        error = (rounded[bits] - exact).flatten()
        hist = torch.histc(error, 81, -0.25, 0.25)
        s.curve(torch.linspace(-0.25, 0.25, 81).tolist(), (hist / hist.max()).tolist(), area, span, colour)
    s.write(PLACE / "few-bits.svg")


def hidden_words() -> None:
    """What four objectives give and ask."""
    s = Sheet(860, 260)
    text = "the cat sat on the mat".split()
    rows = (
        ("causal", [*text[:-1]], [*text[1:]], [True] * 5),
        (
            "masked",
            ["the", "[M]", "sat", "on", "[M]", "mat"],
            ["", "cat", "", "", "the", ""],
            [False, True, False, False, True, False],
        ),
        ("span corruption", ["the", "<0>", "on", "the", "mat"], ["<0>", "cat", "sat", "</s>"], [True] * 4),
        (
            "fill in the middle",
            ["<pre>", "the", "cat", "<suf>", "mat", "<mid>"],
            ["sat", "on", "the", "</s>"],
            [True] * 4,
        ),
    )
    for i, (name, given, asked, learnt) in enumerate(rows):
        y = 30 + 58 * i
        s.text(16, y + 20, name, bold=True, anchor="start")
        for j, word in enumerate(given):
            s.box(150 + 62 * j, y, 58, 30, word, size=12)
        s.text(540, y + 20, "→", size=16)
        for j, (word, loss) in enumerate(zip(asked, learnt, strict=True)):
            if word:
                s.box(
                    560 + 49 * j,
                    y,
                    46,
                    30,
                    word,
                    fill=LEAF if loss else "#fff",
                    line=GREEN if loss else "#d5dee6",
                    size=12,
                )
    s.text(330, 20, "what goes in", size=12, colour=GREY)
    s.text(690, 20, "what is predicted, and carries loss", size=12, colour=GREEN)
    s.write(PLACE / "objectives.svg")


def main() -> None:
    """Draw all of them."""
    PLACE.mkdir(parents=True, exist_ok=True)
    for draw in (
        positional, who_sees_whom, activations, experts, normalising, block_kinds, attention_flow, recurrence,
        smoothing, thin_matrices, bottlenecks, before_the_text, kept, updates, few_bits, hidden_words,
    ):  # fmt: skip
        draw()


if __name__ == "__main__":
    with torch.no_grad():
        main()
