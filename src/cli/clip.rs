//! `fusioncap clip`: imports a CLIP as the encoder that training starts from.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::output;
use crate::config::Runtime;
use crate::encoder::clip::{self, Import, tower::Storage};
use crate::error::Result;
use crate::onnx::external::INLINE_LIMIT;
use crate::onnx::graph::Precision;

#[derive(Debug, Args)]
pub struct ClipArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write an encoder directory from a CLIP in the Hugging Face layout
    Import {
        /// Folder with config.json, model.safetensors (or its shards, or ONNX exports) and
        /// tokenizer.json
        #[arg(value_name = "DIR")]
        source: PathBuf,
        /// Directory for the encoder
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Storage of the weights; the arithmetic is in 32 bits in any case
        #[arg(long, value_enum, default_value_t = Dtype::Source)]
        dtype: Dtype,
        /// Name of the encoder [default: the name of its folder]
        #[arg(long)]
        name: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    /// As in the source
    Source,
    Fp32,
    /// Half as large as fp32
    Fp16,
}

pub fn run(args: ClipArgs) -> Result<()> {
    let Action::Import { source, out, dtype, name } = args.action;
    let storage = match dtype {
        Dtype::Source => Storage::Source,
        Dtype::Fp32 => Storage::As(Precision::Single),
        Dtype::Fp16 => Storage::As(Precision::Half),
    };
    let request = Import { source, out, name, storage, inline_limit: INLINE_LIMIT };
    let encoder = clip::import(&request, &Runtime::default())?;
    output::print(&format!(
        "wrote {}: {} {}, {} wide, {} patches of {} x {} pixels\n",
        request.out.display(),
        encoder.name,
        encoder.version,
        encoder.embedding_dim,
        encoder.num_patches,
        encoder.image_size,
        encoder.image_size,
    ))
}
