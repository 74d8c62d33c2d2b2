//! EfficientNet-Lite0 (Tan and Le 2019; without squeeze-and-excitation, with ReLU6) as a graph that
//! classifies every cell of the last feature map.
//!
//! Batch normalisations are folded into the convolutions. Padding is TensorFlow's `SAME`.

use super::weights::Weights;
use crate::error::Result;
use crate::onnx::graph::{Attribute, Graph, Value};

pub const CLASSES: usize = 1000;
/// Side of the square input in pixels.
pub const INPUT: usize = 320;
/// Cells along one side of the last feature map.
pub const GRID: usize = INPUT / 32;

const STEM: usize = 32;
const HEAD: usize = 1280;
/// TensorFlow's epsilon, not PyTorch's default.
const BATCH_NORM_EPSILON: f32 = 1e-3;

/// Stages of inverted-residual blocks: repeats, kernel, stride of the first block, expansion,
/// output channels.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

/// A convolution followed by batch normalisation.
struct Convolution<'a> {
    weight: &'a str,
    norm: &'a str,
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    depthwise: bool,
    /// Side of the square input map.
    side: usize,
}

/// Adds the network to `graph`: `pixels` `[batch, 3, INPUT, INPUT]` -> class logits per cell
/// `[batch, GRID * GRID, CLASSES]`.
pub fn cell_logits(graph: &mut Graph, weights: &Weights, pixels: &str) -> Result<Value> {
    let mut side = INPUT;
    let stem = Convolution {
        weight: "_conv_stem",
        norm: "_bn0",
        inputs: 3,
        outputs: STEM,
        kernel: 3,
        stride: 2,
        depthwise: false,
        side,
    };
    let mut features = convolve_relu6(graph, weights, pixels, &stem)?;
    side /= 2;
    let mut channels = STEM;
    let mut index = 0;
    for (repeats, kernel, first_stride, expansion, outputs) in STAGES {
        for repeat in 0..repeats {
            let stride = if repeat == 0 { first_stride } else { 1 };
            let block = Block { index, inputs: channels, outputs, kernel, stride, expansion, side };
            features = block.add_to(graph, weights, &features)?;
            side /= stride;
            channels = outputs;
            index += 1;
        }
    }
    let head = Convolution {
        weight: "_conv_head",
        norm: "_bn1",
        inputs: channels,
        outputs: HEAD,
        kernel: 1,
        stride: 1,
        depthwise: false,
        side,
    };
    features = convolve_relu6(graph, weights, &features, &head)?;
    let flat = graph.reshape(&features, &[0, HEAD as i64, (GRID * GRID) as i64]);
    let cells = graph.transpose(&flat, &[0, 2, 1]);
    let classifier = weights.get("_fc.weight", &[CLASSES, HEAD])?.transposed();
    let matrix = graph.weight("classifier.weight", &classifier.shape, &classifier.data);
    let bias =
        graph.weight("classifier.bias", &[CLASSES], &weights.get("_fc.bias", &[CLASSES])?.data);
    Ok(graph.linear(&cells, &matrix, &bias))
}

/// An inverted-residual block: expansion, depthwise convolution, projection.
struct Block {
    index: usize,
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    expansion: usize,
    side: usize,
}

impl Block {
    fn add_to(&self, graph: &mut Graph, weights: &Weights, input: &str) -> Result<Value> {
        let name = |part: &str| format!("_blocks.{}.{part}", self.index);
        let wide = self.inputs * self.expansion;
        let mut features = input.to_string();
        if self.expansion > 1 {
            let expand = Convolution {
                weight: &name("_expand_conv"),
                norm: &name("_bn0"),
                inputs: self.inputs,
                outputs: wide,
                kernel: 1,
                stride: 1,
                depthwise: false,
                side: self.side,
            };
            features = convolve_relu6(graph, weights, &features, &expand)?;
        }
        let filter = Convolution {
            weight: &name("_depthwise_conv"),
            norm: &name("_bn1"),
            inputs: wide,
            outputs: wide,
            kernel: self.kernel,
            stride: self.stride,
            depthwise: true,
            side: self.side,
        };
        features = convolve_relu6(graph, weights, &features, &filter)?;
        let project = Convolution {
            weight: &name("_project_conv"),
            norm: &name("_bn2"),
            inputs: wide,
            outputs: self.outputs,
            kernel: 1,
            stride: 1,
            depthwise: false,
            side: self.side / self.stride,
        };
        let projected = convolve(graph, weights, &features, &project)?;
        if self.stride == 1 && self.inputs == self.outputs {
            return Ok(graph.add(&projected, input));
        }
        Ok(projected)
    }
}

/// A convolution and ReLU6.
fn convolve_relu6(
    graph: &mut Graph,
    weights: &Weights,
    input: &str,
    convolution: &Convolution<'_>,
) -> Result<Value> {
    let features = convolve(graph, weights, input, convolution)?;
    let (low, high) = (graph.scalar(0.0), graph.scalar(6.0));
    Ok(graph.node("Clip", &[&features, &low, &high], &[]))
}

/// A convolution with the batch normalisation folded into weight and bias.
fn convolve(
    graph: &mut Graph,
    weights: &Weights,
    input: &str,
    convolution: &Convolution<'_>,
) -> Result<Value> {
    let Convolution { weight, norm, inputs, outputs, kernel, stride, depthwise, side } =
        *convolution;
    let (groups, per_group) = if depthwise { (outputs, 1) } else { (1, inputs) };
    let shape = [outputs, per_group, kernel, kernel];
    let taps = weights.get(&format!("{weight}.weight"), &shape)?;
    let statistic = |part: &str| weights.get(&format!("{norm}.{part}"), &[outputs]);
    let (scale, shift) = (statistic("weight")?, statistic("bias")?);
    let (mean, variance) = (statistic("running_mean")?, statistic("running_var")?);
    let factor: Vec<f32> = scale
        .data
        .iter()
        .zip(&variance.data)
        .map(|(scale, variance)| scale / (variance + BATCH_NORM_EPSILON).sqrt())
        .collect();
    let bias: Vec<f32> = (0..outputs)
        .map(|channel| shift.data[channel] - mean.data[channel] * factor[channel])
        .collect();
    let per_output = per_group * kernel * kernel;
    let folded: Vec<f32> = taps
        .data
        .iter()
        .enumerate()
        .map(|(position, tap)| tap * factor[position / per_output])
        .collect();
    let filters = graph.weight(&format!("{weight}.weight"), &shape, &folded);
    let offsets = graph.floats(&[outputs], &bias);
    let (before, after) = same_padding(side, kernel, stride);
    Ok(graph.node(
        "Conv",
        &[input, &filters, &offsets],
        &[
            ("kernel_shape", Attribute::Ints(vec![kernel as i64; 2])),
            ("strides", Attribute::Ints(vec![stride as i64; 2])),
            ("pads", Attribute::Ints(vec![before, before, after, after])),
            ("group", Attribute::Int(groups as i64)),
        ],
    ))
}

/// TensorFlow's `SAME` padding: `side / stride` outputs, rounded up; an odd pixel goes to the end.
fn same_padding(side: usize, kernel: usize, stride: usize) -> (i64, i64) {
    let total = ((side.div_ceil(stride) - 1) * stride + kernel).saturating_sub(side);
    let before = total / 2;
    (before as i64, (total - before) as i64)
}

#[cfg(test)]
mod tests {
    use super::same_padding;

    #[test]
    fn padding_is_tensorflows() {
        assert_eq!(same_padding(320, 3, 2), (0, 1));
        assert_eq!(same_padding(160, 3, 1), (1, 1));
        assert_eq!(same_padding(80, 5, 2), (1, 2));
        assert_eq!(same_padding(20, 5, 1), (2, 2));
        assert_eq!(same_padding(10, 1, 1), (0, 0));
    }
}
