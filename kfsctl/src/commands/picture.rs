//! A picture of rectangles and lines of text, as SVG or PNG.

use anyhow::Context;
use std::fmt::Write;
use std::path::Path;

/// Red, green, blue.
pub(super) type Colour = [u8; 3];

/// A rectangle of one colour.
struct Rectangle {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
    colour: Colour,
}

/// How a picture is written, which the end of its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Svg,
    Png,
}

impl Format {
    pub(super) fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "svg" => Some(Self::Svg),
            "png" => Some(Self::Png),
            _ => None,
        }
    }
}

/// A picture on white ground. Text is in an SVG only.
pub(super) struct Picture {
    width: u32,
    height: u32,
    rectangles: Vec<Rectangle>,
    texts: Vec<(u32, u32, String)>,
}

impl Picture {
    /// An empty picture.
    pub(super) fn new(width: u32, height: u32) -> Self {
        Self {
            width,
            height,
            rectangles: Vec::new(),
            texts: Vec::new(),
        }
    }

    /// Adds a rectangle; what is outside of the picture is not seen.
    pub(super) fn fill(&mut self, (x, y): (u32, u32), (width, height): (u32, u32), colour: Colour) {
        self.rectangles.push(Rectangle {
            x,
            y,
            width,
            height,
            colour,
        });
    }

    /// Adds a line of text, from its lower left corner on.
    pub(super) fn text(&mut self, x: u32, y: u32, text: impl Into<String>) {
        self.texts.push((x, y, text.into()));
    }

    /// Writes the picture to a file, in the format that the name ends with.
    pub(super) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let bytes = match Format::of(path) {
            Some(Format::Svg) => self.svg().into_bytes(),
            Some(Format::Png) => self.png()?,
            None => anyhow::bail!("{}: a picture is .svg or .png", path.display()),
        };
        std::fs::write(path, bytes).with_context(|| path.display().to_string())
    }

    fn svg(&self) -> String {
        let (width, height) = (self.width, self.height);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" shape-rendering=\"crispEdges\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        for Rectangle {
            x,
            y,
            width,
            height,
            colour: [red, green, blue],
        } in &self.rectangles
        {
            let _ = writeln!(
                text,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" \
                 fill=\"#{red:02x}{green:02x}{blue:02x}\"/>"
            );
        }
        for (x, y, line) in &self.texts {
            let _ = writeln!(
                text,
                "<text x=\"{x}\" y=\"{y}\" font-family=\"sans-serif\" font-size=\"12\">{}</text>",
                escaped(line)
            );
        }
        text + "</svg>\n"
    }

    fn png(&self) -> anyhow::Result<Vec<u8>> {
        let row = self.width as usize * 3;
        let mut pixels = vec![255; row * self.height as usize];
        for rectangle in &self.rectangles {
            let right = (rectangle.x + rectangle.width).min(self.width);
            let bottom = (rectangle.y + rectangle.height).min(self.height);
            for y in rectangle.y..bottom {
                for x in rectangle.x..right {
                    let at = y as usize * row + x as usize * 3;
                    pixels[at..at + 3].copy_from_slice(&rectangle.colour);
                }
            }
        }
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        writer.finish()?;
        Ok(bytes)
    }
}

/// Text that means nothing to who reads XML, and has nothing that it must not have.
fn escaped(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let mut picture = Picture::new(20, 10);
        picture.fill((0, 0), (10, 10), [255, 0, 0]);
        picture.fill((15, 5), (100, 100), [0, 0, 255]);
        picture.text(1, 9, "<evil> & \x1b");
        picture
    }

    #[test]
    fn an_svg_is_safe() {
        let text = picture().svg();
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"));
        assert!(text.contains("&lt;evil&gt; &amp; \u{fffd}"));
        assert!(text.contains("fill=\"#ff0000\""));
    }

    #[test]
    fn a_png_has_its_pixels() {
        let bytes = picture().png().expect("encodes");
        let decoder = png::Decoder::new(std::io::Cursor::new(bytes));
        let mut reader = decoder.read_info().expect("a png");
        let size = reader.output_buffer_size().expect("small");
        let mut pixels = vec![0; size];
        reader.next_frame(&mut pixels).expect("a png");
        let at = |x: usize, y: usize| <[u8; 3]>::try_from(&pixels[(y * 20 + x) * 3..][..3]).ok();
        assert_eq!(at(0, 0), Some([255, 0, 0]));
        assert_eq!(at(12, 9), Some([255, 255, 255]));
        assert_eq!(at(19, 9), Some([0, 0, 255]));
    }

    #[test]
    fn the_name_says_the_format() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, begins) in [("a.svg", &b"<svg"[..]), ("a.PNG", b"\x89PNG")] {
            let path = folder.path().join(name);
            picture().save(&path).expect("writes");
            let bytes = std::fs::read(&path).expect("reads");
            assert!(bytes.starts_with(begins), "{name}");
        }
        assert!(picture().save(&folder.path().join("a.jpeg")).is_err());
    }
}
