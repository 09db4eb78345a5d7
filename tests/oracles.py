"""The slow, obvious twin of every quantity: loops and definitions, in float64, written without the package."""

import cmath
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

EPS = 1e-9


def mas(v: Tensor) -> Tensor:
    """relu(v / (max|v| + eps)), with autograd's own gradient."""
    return torch.relu(v / (v.abs().amax(dim=-1, keepdim=True) + EPS))


def normalise(v: Tensor) -> Tensor:
    """To a distribution."""
    return v / (v.sum(dim=-1, keepdim=True) + EPS)


def sparse_proto_linear(x: Tensor, W: Tensor, b: Tensor, P: Tensor, G: Tensor, gain: float, residual: bool) -> dict:
    """One token at a time: every named quantity of the layer."""
    outputs = []
    for token in x:
        y = torch.stack([W[o] @ token + b[o] for o in range(len(W))]) + (token if residual else 0)
        match = torch.stack([P[o] @ token for o in range(len(P))]) / math.sqrt(len(token))
        gate = mas(torch.stack([G[o] @ token for o in range(len(G))]))
        logits = gain * (match - gate)
        outputs.append({"y": y, "logits": logits, "weights": mas(logits), "masked": y * mas(logits)})
    return {key: torch.stack([output[key] for output in outputs]) for key in outputs[0]}


def token_costs(g: Tensor, x: Tensor) -> Tensor:
    """|| g_o x ||_2 by building each token's whole gradient."""
    costs = torch.zeros(len(g), g.shape[1], dtype=g.dtype)
    for n in range(len(g)):
        for o in range(g.shape[1]):
            costs[n, o] = math.sqrt(sum(float(g[n, o] * x[n, i]) ** 2 for i in range(x.shape[1])))
    return costs


def relative_costs(g: Tensor, x: Tensor, W: Tensor) -> Tensor:
    """The whole gradient's norm over that of the row that it would change."""
    sizes = [math.sqrt(sum(float(w) ** 2 for w in row)) + EPS for row in W]
    return token_costs(g, x) / torch.tensor(sizes, dtype=g.dtype)


def fisher_costs(g: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """The whole gradient's norm in the metric 1 / (sqrt(v) + eps), entry by entry."""
    costs = torch.zeros(len(g), g.shape[1], dtype=g.dtype)
    for n in range(len(g)):
        for o in range(g.shape[1]):
            terms = ((float(g[n, o] * x[n, i])) ** 2 / (math.sqrt(float(v[o, i])) + EPS) for i in range(x.shape[1]))
            costs[n, o] = math.sqrt(sum(terms))
    return costs


def own_weight_gradients(layer: nn.Module, weight: Tensor, bias: Tensor, loss: Callable[[], Tensor]) -> Tensor:
    """[*b, o, i]: dL/dW of every token, by giving each token a W [o, i] of its own, the same in all calls."""
    own: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        if not own:
            own.append(weight.detach().expand(*x.shape[:-1], *weight.shape).clone().requires_grad_())
        return (own[0] * x.unsqueeze(-2)).sum(-1) + bias

    layer.forward = forward
    total = loss()
    del layer.forward
    return torch.autograd.grad(total, own[0])[0]


def without_noise(g: Tensor) -> Tensor:
    """g of the summed loss, with the tokens at 0 whose largest entry is not above 1e-5."""
    return torch.stack([token if token.abs().max() > 1e-5 else token * 0 for token in g])


def goodness(contribution: Tensor, relevance: Tensor, cost: Tensor) -> Tensor:
    """The ADR's formula, token by token."""
    return mas(mas(contribution) * mas(relevance)) / (mas(cost) + EPS)


def jensen_shannon(p: list[float], q: list[float]) -> float:
    """By the definition, 0 log 0 = 0, no eps."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        total += (a * math.log(a / m) if a else 0) + (b * math.log(b / m) if b else 0)
    return total / 2


def meta_loss(logits: Tensor, good: Tensor) -> Tensor:
    """Per token, differentiable in logits by autograd."""
    p, q = normalise(mas(logits)), normalise(mas(good))
    m = torch.log((p + q) / 2 + EPS)
    return (p * (torch.log(p + EPS) - m) + q * (torch.log(q + EPS) - m)).sum(-1) / 2


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over the last axis, with torch's eps of 1e-5."""
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def rope(v: Tensor, position: int) -> Tensor:
    """One head's vector of width d, turned: as complex numbers v_k + i v_(k + d/2), by position / 10000^(2k/d)."""
    half = len(v) // 2
    turned = [complex(v[k], v[k + half]) * cmath.exp(1j * position / 10000 ** (2 * k / len(v))) for k in range(half)]
    return torch.tensor([z.real for z in turned] + [z.imag for z in turned], dtype=v.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Causal attention over one sequence [s, h] with RoPE on q and k, position by position and head by head."""
    mixed = torch.zeros_like(v)
    width = q.shape[1] // heads
    for head in (slice(start, start + width) for start in range(0, q.shape[1], width)):
        for t in range(len(q)):
            query = rope(q[t, head], t)
            scores = torch.stack([query @ rope(k[s, head], s) for s in range(t + 1)]) / math.sqrt(width)
            weights = scores.exp() / scores.exp().sum()
            mixed[t, head] = sum(weights[s] * v[s, head] for s in range(t + 1))
    return mixed


def routing_patterns(rows: list[tuple[str, list[list[bool]]]]) -> dict[str, float]:
    """Of one module, from (task, for each token which experts are active): token by token, pair by pair."""
    experts, tokens = len(rows[0][1][0]), [token for _, row in rows for token in row]
    measures = {"density": sum(sum(token) for token in tokens) / (len(tokens) * experts)}
    measures["dead_experts"] = sum(not any(token[e] for token in tokens) for e in range(experts)) / experts
    unions = []
    for _, row in rows:
        for start in range(0, len(row) - 7, 8):
            unions.append(sum(any(token[e] for token in row[start : start + 8]) for e in range(experts)) / experts)
    measures["union_of_chunk"] = sum(unions) / len(unions) if unions else math.nan
    frequencies = []
    for task in dict.fromkeys(task for task, _ in rows):
        mine = [token for name, row in rows if name == task for token in row]
        frequencies.append([sum(token[e] for token in mine) / len(mine) for e in range(experts)])
    given = [[each / sum(f) for each in f] for f in frequencies if sum(f)]
    joint = {(t, e): p / len(given) for t, row in enumerate(given) for e, p in enumerate(row)}
    of_expert = [sum(joint[t, e] for t in range(len(given))) for e in range(experts)]
    measures["task_information"] = sum(p * math.log(p * len(given) / of_expert[e]) for (_, e), p in joint.items() if p)
    distances = []
    for place, a in enumerate(frequencies):
        for b in frequencies[:place]:
            if any(a) or any(b):
                distances.append(1 - sum(map(min, a, b)) / sum(map(max, a, b)))
    measures["task_distance"] = sum(distances) / len(distances) if distances else math.nan
    return measures


def envelope(points: list[tuple[float, float]], density: float) -> float:
    """The baselines' lower envelope by its definition: from the best of those not denser, straight in log density to
    the sparsest of the denser ones that is better still."""
    left = min((loss, d) for d, loss in points if d <= density)
    better = [(d, loss) for d, loss in points if d > density and loss < left[0]]
    if not better:
        return left[0]
    right = min(better)
    part = (math.log(density) - math.log(left[1])) / (math.log(right[0]) - math.log(left[1]))
    return left[0] * (1 - part) + right[1] * part


# --- arms made of parts ---


def top(scores: list[float], k: int) -> list[int]:
    """1 for the k largest scores and for those that tie with the k-th."""
    kth = sorted(scores, reverse=True)[k - 1]
    return [int(score >= kth) for score in scores]


def gate_weights(gate: str, logits: Tensor, y: Tensor, k: int | None) -> Tensor:
    """One token at a time; differentiable in logits, and in y where the gate reads it."""
    rows = []
    for token, output in zip(logits, y, strict=True):
        scores = output.abs() if gate.startswith("magnitude") else token
        chosen = torch.tensor(top(scores.tolist(), k) if k else [1] * len(token), dtype=token.dtype)
        if gate == "mas":
            rows.append(mas(token) * chosen)
        elif gate == "relu":
            rows.append(torch.relu(token) * chosen)
        elif gate == "hard":
            rows.append(torch.tensor([float(v > 0) for v in token], dtype=token.dtype) * chosen)
        elif gate == "softmax":
            powers = [math.e**v if c else 0 * v for v, c in zip(token, chosen, strict=True)]
            total = sum(powers)
            rows.append(torch.stack([power / total for power in powers]) * chosen.sum())
        else:
            rows.append(chosen + 0 * token)
    return torch.stack(rows)


def signal(name: str, o: Tensor, y: Tensor, g: Tensor, g_o: Tensor, cost: Tensor) -> Tensor:
    """By the formulas, expert by expert; g = dL/dy, g_o = dL/do."""
    if name == "goodness":
        return goodness(o.abs(), g.abs(), cost)
    if name == "subtractive":
        return mas(g_o.abs()) * (mas(o.abs()) - mas(cost))
    if name == "benefit":
        return torch.tensor([[-float(v * d) for v, d in zip(*pair, strict=True)] for pair in zip(y, g_o, strict=True)])
    rows = []
    for values, pulls in zip(o if name == "signed" else y, g_o, strict=True):
        falls = [max(0.0, -float(v * d)) for v, d in zip(values, pulls, strict=True)]
        noise = 1e-6 * float(values.abs().max() * pulls.abs().max())
        rows.append(falls if max(falls) > noise else [0.0] * len(falls))
    return torch.tensor(rows, dtype=o.dtype)


def objective(name: str, logits: Tensor, scores: Tensor) -> Tensor:
    """Per token, differentiable in logits by autograd; scores = mas(Goodness)^sharpness, of the signed Goodness."""
    if name == "policy":
        powers = logits.exp()
        return torch.stack(
            [
                -sum(p * g for p, g in zip(*pair, strict=True)) / sum(pair[0])
                for pair in zip(powers, scores, strict=True)
            ]
        )
    if name == "straight_through":
        return sum(
            -logits[:, each] * (scores[:, each] - scores.sum(-1) / scores.shape[1]) for each in range(scores.shape[1])
        )
    if name == "jsd":
        p, q = normalise(mas(logits)), normalise(scores)
        m = torch.log((p + q) / 2 + EPS)
        return (p * (torch.log(p + EPS) - m) + q * (torch.log(q + EPS) - m)).sum(-1) / 2
    if name == "cross_entropy":
        q = normalise(scores)
        return -(q * (logits - logits.exp().sum(-1, keepdim=True).log())).sum(-1)
    z = logits + scores if name == "entropy_of_sum" else logits - scores
    p = z.exp() / z.exp().sum(-1, keepdim=True)
    return -(p * p.log()).sum(-1)
