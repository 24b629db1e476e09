"""The shape of a model as memory and work depend on it, and how many parameters it has.

Biases are left out: they are less than a thousandth.
"""

from dataclasses import dataclass

from irpo_nemo.config import ModelConfig
from irpo_nemo.model_shape import ModelShape, padded_vocab_size


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder-only model. The defaults are what our families have; others are for comparing with other runs."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    ffn_hidden_size: int
    vocab_size: int
    tie_word_embeddings: bool = False
    is_gated: bool = True
    """SwiGLU, which has a third matrix and keeps two products."""
    has_rotary_embedding: bool = True
    """Rotated queries and keys are kept beside the product that they were cut from."""
    num_learned_positions: int = 0
    """Rows of a position embedding."""
    has_dropout: bool = False
    """Two masks of a byte per value and layer."""
    attention_outputs: int = 2
    """Copies that backward keeps: FlexAttention's own and the next product's input; 1 where they are one tensor."""

    @classmethod
    def from_shape(cls, shape: ModelShape) -> "Decoder":
        """The model of a Hugging Face folder."""
        return cls(
            hidden_size=shape.hidden_size,
            num_layers=shape.num_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            head_dim=shape.head_dim,
            ffn_hidden_size=shape.ffn_hidden_size,
            vocab_size=shape.vocab_size,
            tie_word_embeddings=shape.tie_word_embeddings,
        )

    @classmethod
    def from_config(cls, model: ModelConfig) -> "Decoder":
        """The model whose shape the configuration tells, without a folder."""
        return cls(
            hidden_size=model.hidden_size,
            num_layers=model.num_layers,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.num_key_value_heads,
            head_dim=model.hidden_size // model.num_attention_heads,
            ffn_hidden_size=model.ffn_hidden_size,
            vocab_size=model.tokenizer_vocab_size,
            tie_word_embeddings=model.tie_word_embeddings,
        )

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Parameters of a layer that tensor parallel splits."""
        attention = self.hidden_size * (2 * self.query_size + 2 * self.key_size)
        return attention + self.hidden_size * self.ffn_hidden_size * (3 if self.is_gated else 2)

    @property
    def num_parameters(self) -> int:
        """Of the whole model, unpadded."""
        embeddings = self.vocab_size * (1 if self.tie_word_embeddings else 2) + self.num_learned_positions
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return self.num_layers * self.layer_matrices + embeddings * self.hidden_size + norms

    def embedding_rows(self, tp: int) -> int:
        """Rows of the embedding on one of `tp` tensor-parallel ranks."""
        return padded_vocab_size(self.vocab_size, tp) // tp
