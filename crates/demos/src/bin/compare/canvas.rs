//! The drawing area of a picture, and its image file.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

/// The drawing area.
pub type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Writes the picture that `draw` draws, in the file format of `path`'s extension.
///
/// # Errors
/// The picture cannot be drawn or written.
pub fn save(path: &Path, (width, height): (u32, u32), draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<()> {
    // A built-in font, so that none is needed on the machine.
    let font = epaint_default_fonts::UBUNTU_LIGHT;
    register_font("sans-serif", FontStyle::Normal, font).map_err(|_| anyhow!("the font is not a font"))?;
    let mut pixels = vec![0; (width * height * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        root.fill(&WHITE).context("cannot draw")?;
        draw(&root)?;
        root.present().context("cannot draw")?;
    }
    image::save_buffer(path, &pixels, width, height, image::ColorType::Rgb8)
        .with_context(|| format!("cannot write {}", path.display()))
}
