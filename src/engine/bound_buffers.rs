//! A vision tower's input and outputs at fixed addresses in a device's memory.
//!
//! A batch is written into pinned memory of the host, copied from there and encoded where it then
//! lies, and the prefix reads the result where that lies: from batch to batch nothing is allocated
//! and nothing but the pixels goes to the device. A CUDA graph, which replays its kernels at the
//! addresses that they were recorded with, needs exactly that.

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session, SessionOutputs};
use ort::value::Tensor;

use super::decoder_session::failed;
use crate::config::Provider;
use crate::error::Result;

/// An output's name and shape.
pub type Output = (String, Vec<usize>);

pub struct Fixed {
    /// `[size, 3, height, width]`
    input: Tensor<f32>,
    binding: IoBinding,
    host: MemoryInfo<'static>,
}

impl Fixed {
    /// Makes room for the graph's one input, `pixel_values`, and all of its outputs, where
    /// `provider` computes.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if there is too little memory.
    pub fn new(
        vision: &Session,
        (provider, device_id): (Provider, i32),
        shape: [usize; 4],
        outputs: Vec<Output>,
    ) -> Result<Self> {
        let place = |device, id, kind| MemoryInfo::new(device, id, AllocatorType::Device, kind);
        let bind = || -> ort::Result<Self> {
            let (device, host) = match provider {
                Provider::Cpu => (
                    place(AllocationDevice::CPU, 0, MemoryType::Default)?,
                    place(AllocationDevice::CPU, 0, MemoryType::Default)?,
                ),
                Provider::Cuda | Provider::Tensorrt => (
                    place(AllocationDevice::CUDA, device_id, MemoryType::Default)?,
                    place(AllocationDevice::CUDA_PINNED, device_id, MemoryType::CPUInput)?,
                ),
            };
            let memory = Allocator::new(vision, device)?;
            let input = Tensor::new(&memory, shape)?;
            let mut binding = vision.create_binding()?;
            binding.bind_input("pixel_values", &input)?;
            for (name, shape) in outputs {
                binding.bind_output(name, Tensor::<f32>::new(&memory, shape)?)?;
            }
            Ok(Self { input, binding, host })
        };
        bind().map_err(failed)
    }

    /// Memory of the host from which the device reads fast, of the input's shape.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if there is too little of it.
    pub fn staging(&self, vision: &Session) -> Result<Tensor<f32>> {
        let make = || {
            let memory = Allocator::new(vision, self.host.to_owned())?;
            Tensor::new(&memory, self.input.shape().clone())
        };
        make().map_err(failed)
    }

    /// Runs the tower over what `staging` holds. The outputs lie where they always do: the next
    /// call overwrites them.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if the model fails.
    pub fn run<'s>(
        &'s mut self,
        vision: &'s mut Session,
        staging: &Tensor<f32>,
    ) -> Result<SessionOutputs<'s>> {
        staging.copy_into(&mut self.input).map_err(failed)?;
        vision.run_binding(&self.binding).map_err(failed)
    }
}
