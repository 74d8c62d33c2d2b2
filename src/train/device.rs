//! The device for training.

use burn::tensor::Device;
use clap::ValueEnum;

use crate::error::Result;

/// The kind of device, as in `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    #[default]
    Cpu,
    /// The first NVIDIA GPU; needs the feature `train-cuda`.
    Cuda,
}

impl DeviceKind {
    /// The burn device, with autodiff.
    ///
    /// # Errors
    /// `ErrorKind::Config` for CUDA in a build without it.
    pub fn device(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::flex().autodiff()),
            Self::Cuda => cuda(),
        }
    }
}

#[cfg(feature = "train-cuda")]
fn cuda() -> Result<Device> {
    Ok(Device::cuda(0).autodiff())
}

#[cfg(not(feature = "train-cuda"))]
fn cuda() -> Result<Device> {
    use crate::error::{Error, ErrorKind};
    Err(Error::new(ErrorKind::Config, "--device can't be cuda in this build")
        .with_context("allowed", "cpu; cuda in a build with the feature train-cuda"))
}

#[cfg(all(test, not(feature = "train-cuda")))]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_build_without_cuda_says_so() {
        let error = DeviceKind::Cuda.device().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("train-cuda"), "{error}");
    }
}
