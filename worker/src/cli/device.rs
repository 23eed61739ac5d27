use tch::Device;

use crate::{cuda, memory};

/// Where to compute.
#[derive(clap::Args)]
pub struct Compute {
    /// Where to compute: cpu or cuda:N.
    #[arg(long, default_value = "cpu", value_parser = parse, value_name = "DEVICE")]
    device: Device,
    /// Threads for computing on the CPU [default: all cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

impl Compute {
    /// Sets the number of threads, and returns the device. Has to be called first: loading
    /// libtorch's CUDA part may re-execute the process.
    ///
    /// # Errors
    /// libtorch cannot use that device.
    pub fn prepare(&self) -> Result<Device, String> {
        if self.device.is_cuda() {
            cuda::load()?;
        }
        memory::keep_freed();
        if let Some(threads) = self.threads {
            tch::set_num_threads(threads.into());
        }
        if let Device::Cuda(number) = self.device {
            let visible = tch::Cuda::device_count();
            if number as i64 >= visible {
                return Err(format!("cuda:{number} cannot be used: libtorch sees {visible} CUDA devices here"));
            }
        }
        Ok(self.device)
    }
}

/// The device that `text` names.
///
/// # Errors
/// It names none.
pub fn parse(text: &str) -> Result<Device, String> {
    match text.split_once(':') {
        None if text == "cpu" => Ok(Device::Cpu),
        None if text == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", number)) if number.parse::<u8>().is_ok() => Ok(Device::Cuda(number.parse().unwrap_or_default())),
        _ => Err("expected cpu or cuda:N".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_parsed() {
        assert_eq!(parse("cpu"), Ok(Device::Cpu));
        assert_eq!(parse("cuda:3"), Ok(Device::Cuda(3)));
        assert!(["gpu", "cuda:x", "cuda:-1", ""].iter().all(|text| parse(text).is_err()));
    }
}
