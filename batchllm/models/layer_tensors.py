"""The matrices of a decoder layer, by the names of the tensors that a checkpoint has them in."""

from __future__ import annotations

from dataclasses import dataclass

from batchllm.models.layer_spec import LayerSpec


@dataclass(frozen=True)
class Projections:
    """Several of the same input, as one matrix: the rows of one below those of the other."""

    in_features: int
    weights: dict[str, int]  # the number of rows of each tensor, in their order
    biases: dict[str, int]  # likewise; empty if there are none

    @property
    def out_features(self) -> int:
        return sum(self.weights.values())


@dataclass(frozen=True)
class LayerTensors:
    qkv: Projections  # q, k, v
    o: Projections
    gate_up: Projections
    down: Projections

    @classmethod
    def of(cls, spec: LayerSpec, hidden_size: int, prefix: str) -> LayerTensors:
        """Those of the layer whose tensor names begin with `prefix`."""
        inter, q_size, kv_size = spec.intermediate_size, spec.attention.q_size, spec.attention.kv_size

        def projections(in_features: int, out_features: dict[str, int], has_bias: bool) -> Projections:
            weights, biases = (
                {f"{prefix}{name}.{suffix}": size for name, size in out_features.items()}
                for suffix in ("weight", "bias")
            )
            return Projections(in_features, weights, biases if has_bias else {})

        qkv = {"self_attn.q_proj": q_size, "self_attn.k_proj": kv_size, "self_attn.v_proj": kv_size}
        return cls(
            qkv=projections(hidden_size, qkv, spec.qkv_bias),
            o=projections(q_size, {"self_attn.o_proj": hidden_size}, spec.o_bias),
            gate_up=projections(hidden_size, {"mlp.gate_proj": inter, "mlp.up_proj": inter}, spec.mlp_bias),
            down=projections(inter, {"mlp.down_proj": hidden_size}, spec.mlp_bias),
        )
