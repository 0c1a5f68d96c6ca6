"""Trees of published size: nodes per level _ tokens per level; the last level holds the requests' own tokens."""

from tests.cases import Case, Request

TREES = [
    "1,10_4096,416",
    "1,1024_2048,32",
    "1,4,256_32,256,32",
    "1,8,512_32,2048,256",
    "1,4,8,256_32,256,256,32",
    "1,16,32,64,128,1024_256,128,64,32,32,32",
    "2,8,16,256_256,256,32,32",
    "256_1024",
]
HEADS = [(32, 32), (16, 8), (32, 8), (64, 8)]


def levels(tree: str) -> list[list[int]]:
    """Nodes of every level, and tokens of each of them."""
    return [[int(number) for number in part.split(",")] for part in tree.split("_")]


def tree_case(tree: str, num_heads: tuple[int, int], head_dim: int, *, prefill: bool = False) -> Case:
    """A decode of every request, or the prefill of its own tokens."""
    nodes, tokens = levels(tree)
    requests = []
    for leaf in range(nodes[-1]):
        path = tuple((f"{level}.{leaf * nodes[level] // nodes[-1]}", tokens[level]) for level in range(len(nodes) - 1))
        requests.append(Request(path, tokens[-1], tokens[-1] if prefill else 1))
    return Case(
        tree,
        requests,
        num_qo_heads=num_heads[0],
        num_kv_heads=num_heads[1],
        head_dim=head_dim,
        page_size=16,
    )
