//! What the vision tower and the prefix make of a batch, and the slices that it is cut into.

/// A batch's prefix for the decoder and the embeddings it came from.
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
    pub fn joined(parts: Vec<Self>) -> Self {
        parts.into_iter().reduce(Self::with).unwrap_or_default()
    }

    fn with(mut self, next: Self) -> Self {
        self.images += next.images;
        self.prefix.extend(next.prefix);
        self.embeddings.extend(next.embeddings);
        self.attention.extend(next.attention);
        self
    }
}

/// Images of a batch that a tower encodes at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slice {
    pub first: usize,
    pub images: usize,
    /// Rows, those without an image counted.
    pub size: usize,
}
