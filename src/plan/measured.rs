//! The engines that were measured: images per second of the engine alone, from the tables of
//! docs/performance.md. A plan estimates no other: it has to be given the rate.

use std::fmt;

use clap::ValueEnum;

/// The hardware that runs the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Gpu {
    H100,
    H200,
    /// The worker's cores
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Model {
    /// models/tiny
    Tiny,
    /// A CLIP ViT-B/32 with a decoder of 6 layers of 512, five beams, captions of full length
    #[value(name = "vit-b-32")]
    VitB32,
}

impl Model {
    /// Numbers in the vision tower's input.
    pub fn input(self) -> f64 {
        3.0 * match self {
            Self::Tiny => 320.0 * 320.0,
            Self::VitB32 => 224.0 * 224.0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    Fp32,
    /// The bundle's variant in 16 bits
    Fp16,
}

/// An engine, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    pub gpu: Gpu,
    pub model: Model,
    pub precision: Precision,
}

/// Images per second by images per batch.
type Rates = &'static [(u32, f64)];

/// Cores of the machine on which the engine without a GPU was measured.
const CORES: u32 = 16;

const MEASURED: [(Setup, Rates); 6] = [
    (
        Setup { gpu: Gpu::None, model: Model::Tiny, precision: Precision::Fp32 },
        &[(1, 54.0), (8, 177.0), (32, 237.0)],
    ),
    (
        Setup { gpu: Gpu::H100, model: Model::Tiny, precision: Precision::Fp32 },
        &[(1, 68.0), (8, 381.0), (32, 922.0), (128, 1_590.0), (256, 1_873.0)],
    ),
    (
        Setup { gpu: Gpu::H100, model: Model::VitB32, precision: Precision::Fp32 },
        &[(1, 26.0), (8, 242.0), (32, 879.0), (128, 1_638.0), (256, 1_970.0)],
    ),
    (Setup { gpu: Gpu::H200, model: Model::Tiny, precision: Precision::Fp32 }, &[(32, 1_167.0)]),
    (Setup { gpu: Gpu::H200, model: Model::VitB32, precision: Precision::Fp32 }, &[(64, 1_085.0)]),
    (
        Setup { gpu: Gpu::H200, model: Model::VitB32, precision: Precision::Fp16 },
        &[(64, 1_510.0), (128, 1_461.0), (256, 2_556.0)],
    ),
];

/// Returns the images per second of `setup` with batches of `batch` images, if they were measured.
/// Without a GPU the number of `cores` must be the measured one.
pub fn rate(setup: Setup, cores: u32, batch: u32) -> Option<f64> {
    let (_, rates) = MEASURED.iter().find(|(measured, _)| *measured == setup)?;
    let (_, rate) = rates.iter().find(|(images, _)| *images == batch)?;
    (setup.gpu != Gpu::None || cores == CORES).then_some(*rate)
}

/// Lists the measured engines with their batches.
pub fn list() -> String {
    let row = |(setup, rates): &(Setup, Rates)| {
        let batches: Vec<String> = rates.iter().map(|(batch, _)| batch.to_string()).collect();
        let cores =
            if setup.gpu == Gpu::None { format!(" on {CORES} cores") } else { String::new() };
        format!("{setup}{cores}: batch {}", batches.join("/"))
    };
    MEASURED.iter().map(row).collect::<Vec<_>>().join("; ")
}

impl fmt::Display for Setup {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} {}", name(&self.gpu), name(&self.model), name(&self.precision))
    }
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_measured_is_known() {
        let setup = Setup { gpu: Gpu::H100, model: Model::VitB32, precision: Precision::Fp32 };
        assert_eq!(rate(setup, 4, 256), Some(1970.0));
        assert_eq!(rate(setup, 4, 64), None);
        assert_eq!(rate(Setup { precision: Precision::Fp16, ..setup }, 4, 256), None);
        let cpu = Setup { gpu: Gpu::None, model: Model::Tiny, ..setup };
        assert_eq!((rate(cpu, 16, 32), rate(cpu, 4, 32)), (Some(237.0), None));
        assert!(list().contains("h200 vit-b-32 fp16: batch 64/128/256"), "{}", list());
    }
}
