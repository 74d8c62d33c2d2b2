//! CLIP's vision tower: a vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929). The state
//! of the class token is the image embedding; unlike in stock exports, the final layer norm and the
//! projection also map all patches to the joint embedding space.

use super::config::ClipConfig;
use super::tower::{Storage, Tower};
use super::weights::Checkpoint;
use crate::error::Result;
use crate::onnx::graph::{Attribute, Dim, Graph};
use crate::onnx::proto::{DataType, ModelProto};

/// `pixel_values` `[batch, 3, image_size, image_size]` -> `image_embeds` `[batch, width]`, not of
/// unit length, `patch_embeds` `[batch, patches, width]`, in row-major order of the patches.
///
/// # Errors
/// `ErrorKind::Config` with the missing or misshapen weight.
pub fn write(checkpoint: &Checkpoint, config: &ClipConfig, storage: Storage) -> Result<ModelProto> {
    let vision = &config.vision;
    let (width, patches) = (vision.transformer.hidden_size, vision.num_patches());
    let (batch, side) = (Dim::Free("batch"), Dim::Fixed(vision.image_size));
    let mut graph = Graph::new("vision");
    let pixels = graph.input("pixel_values", DataType::Float, &[batch, Dim::Fixed(3), side, side]);
    let config_of = &vision.transformer;
    let mut tower = Tower { graph, checkpoint, storage, config: config_of, root: "vision_model" };

    let patch = vision.patch_size;
    let kernel = tower
        .weight("vision_model.embeddings.patch_embedding.weight", &[width, 3, patch, patch])?;
    let class = tower.weight("vision_model.embeddings.class_embedding", &[width])?;
    let positions =
        tower.weight("vision_model.embeddings.position_embedding.weight", &[patches + 1, width])?;
    let graph = &mut tower.graph;
    let stride = Attribute::Ints(vec![patch as i64; 2]);
    let cells = graph.node(
        "Conv",
        &[&pixels, &kernel],
        &[("kernel_shape", stride.clone()), ("strides", stride)],
    );
    let rows = graph.reshape(&cells, &[0, width as i64, patches as i64]);
    let embedded = graph.transpose(&rows, &[0, 2, 1]);
    let count = graph.size_of(&pixels, 0);
    let one_row = graph.ints(&[1, width as i64]);
    let class_shape = graph.concat(&[&count, &one_row], 0);
    let classes = graph.node("Expand", &[&class, &class_shape], &[]);
    let tokens = graph.concat(&[&classes, &embedded], 1);
    let placed = graph.add(&tokens, &positions);

    // Misspelt in every checkpoint.
    let normed = tower.norm("pre_layrnorm", &placed)?;
    let states = tower.layers(normed, None)?;
    let finished = tower.norm("post_layernorm", &states)?;
    let projected = tower.project("visual_projection", &finished, config.projection_dim)?;

    let mut graph = tower.graph;
    let first = graph.int(0);
    let image_embeds = graph.gather(&projected, &first, 1);
    let (from, to, axis) = (graph.ints(&[1]), graph.ints(&[i64::MAX]), graph.ints(&[1]));
    let patch_embeds = graph.node("Slice", &[&projected, &from, &to, &axis], &[]);
    let dim = Dim::Fixed(config.projection_dim);
    graph.output("image_embeds", &image_embeds, DataType::Float, &[batch, dim]);
    graph.output(
        "patch_embeds",
        &patch_embeds,
        DataType::Float,
        &[batch, Dim::Fixed(patches), dim],
    );
    Ok(graph.model())
}
