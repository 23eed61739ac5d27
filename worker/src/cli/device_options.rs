//! Options of commands that compute with libtorch.

use anyhow::{Result, bail};
use tch::Device;

use crate::{cuda, host_memory};

/// The device and the number of threads.
#[derive(clap::Args)]
pub struct DeviceOptions {
    /// Device to compute on: cpu or cuda:N.
    #[arg(long, default_value = "cpu", value_parser = parse_device, value_name = "DEVICE")]
    device: Device,
    /// Number of CPU threads for computing [default: all cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

impl DeviceOptions {
    /// Loads libtorch's CUDA libraries if the device is a GPU, and sets the number of threads.
    /// Returns the device. A command calls this before it does anything else, because the loading
    /// may re-execute the process.
    ///
    /// # Errors
    /// libtorch cannot use the device.
    pub fn initialize(&self) -> Result<Device> {
        if self.device.is_cuda() {
            cuda::load()?;
        }
        host_memory::disable_trimming();
        if let Some(threads) = self.threads {
            tch::set_num_threads(threads.into());
        }
        if let Device::Cuda(number) = self.device {
            let visible = tch::Cuda::device_count();
            if number as i64 >= visible {
                bail!("cuda:{number} cannot be used: libtorch sees {visible} CUDA devices here");
            }
        }
        Ok(self.device)
    }
}

/// Parses the name of a device; `cuda` is `cuda:0`.
///
/// # Errors
/// The text is not `cpu`, `cuda` or `cuda:N`.
pub fn parse_device(text: &str) -> Result<Device> {
    match text.split_once(':') {
        None if text == "cpu" => Ok(Device::Cpu),
        None if text == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", number)) if number.parse::<u8>().is_ok() => Ok(Device::Cuda(number.parse().unwrap_or_default())),
        _ => bail!("expected cpu or cuda:N"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_parsed() {
        assert_eq!(parse_device("cpu").unwrap(), Device::Cpu);
        assert_eq!(parse_device("cuda:3").unwrap(), Device::Cuda(3));
        assert!(["gpu", "cuda:x", "cuda:-1", ""].iter().all(|text| parse_device(text).is_err()));
    }
}
