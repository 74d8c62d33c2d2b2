//! The encoder's output for a batch.

/// The decoder's prefix for a batch, and the embeddings it was made from.
#[derive(Default)]
pub struct Encoded {
    pub images: usize,
    /// Row-major `[images, prefix_length, hidden_size]`.
    pub prefix: Vec<f32>,
    /// Unit length, row-major `[images, embedding_dim]`.
    pub embeddings: Vec<f32>,
    /// Row-major `[images, prefix_length, num_patches]`, or empty.
    pub attention: Vec<f32>,
}

impl Encoded {
    /// One batch of the micro-batches in `parts`, in their order.
    pub fn concat(parts: Vec<Self>) -> Self {
        parts.into_iter().reduce(Self::append).unwrap_or_default()
    }

    fn append(mut self, next: Self) -> Self {
        self.images += next.images;
        self.prefix.extend(next.prefix);
        self.embeddings.extend(next.embeddings);
        self.attention.extend(next.attention);
        self
    }
}
