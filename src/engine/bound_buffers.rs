//! The vision tower's input and outputs, bound to device memory that is allocated once.
//!
//! A batch is written to pinned host memory and copied to the bound input; the prefix reads the
//! bound outputs on the device. Between batches nothing is allocated, and only pixels are copied
//! to the device. A CUDA graph needs this: it replays its kernels at the addresses of the capture.

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session, SessionOutputs};
use ort::value::Tensor;

use super::ort_values::runtime_error;
use crate::config::Provider;
use crate::error::Result;

/// An output's name and shape.
pub type Output = (String, Vec<usize>);

pub struct BoundBuffers {
    /// `[batch_size, 3, height, width]`
    input: Tensor<f32>,
    binding: IoBinding,
    /// Host memory that the device reads fast.
    host: MemoryInfo<'static>,
}

impl BoundBuffers {
    /// Allocates the graph's one input, `pixel_values` of `shape`, and its `outputs` in the memory
    /// of `provider`.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if there is not enough memory.
    pub fn bind(
        vision: &Session,
        (provider, device_id): (Provider, i32),
        shape: [usize; 4],
        outputs: Vec<Output>,
    ) -> Result<Self> {
        let memory = |device, id, kind| MemoryInfo::new(device, id, AllocatorType::Device, kind);
        let bind = || -> ort::Result<Self> {
            let (device, host) = match provider {
                Provider::Cpu => (
                    memory(AllocationDevice::CPU, 0, MemoryType::Default)?,
                    memory(AllocationDevice::CPU, 0, MemoryType::Default)?,
                ),
                Provider::Cuda | Provider::Tensorrt => (
                    memory(AllocationDevice::CUDA, device_id, MemoryType::Default)?,
                    memory(AllocationDevice::CUDA_PINNED, device_id, MemoryType::CPUInput)?,
                ),
            };
            let allocator = Allocator::new(vision, device)?;
            let input = Tensor::new(&allocator, shape)?;
            let mut binding = vision.create_binding()?;
            binding.bind_input("pixel_values", &input)?;
            for (name, shape) in outputs {
                binding.bind_output(name, Tensor::<f32>::new(&allocator, shape)?)?;
            }
            Ok(Self { input, binding, host })
        };
        bind().map_err(runtime_error)
    }

    /// A new staging buffer of the input's shape, in host memory that the device reads fast.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if there is not enough memory.
    pub fn allocate_staging(&self, vision: &Session) -> Result<Tensor<f32>> {
        let allocate = || {
            let allocator = Allocator::new(vision, self.host.to_owned())?;
            Tensor::new(&allocator, self.input.shape().clone())
        };
        allocate().map_err(runtime_error)
    }

    /// Runs the vision tower on the batch in `staging`. The next run overwrites the outputs.
    ///
    /// # Errors
    /// `ErrorKind::Runtime` if the model fails.
    pub fn run<'s>(
        &'s mut self,
        vision: &'s mut Session,
        staging: &Tensor<f32>,
    ) -> Result<SessionOutputs<'s>> {
        staging.copy_into(&mut self.input).map_err(runtime_error)?;
        vision.run_binding(&self.binding).map_err(runtime_error)
    }
}
