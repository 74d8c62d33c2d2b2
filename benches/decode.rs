//! From JPEG bytes to CLIP's normalised 224 x 224 input on one core: both of our modes against Pillow
//! and numpy (`peer/pillow.py`) and against the `image` crate alone (its own JPEG decoder,
//! orientation, Catmull-Rom, centre crop). `cargo bench --bench decode`.
//!
//! The contenders take turns in several rounds, one thread at a time, so that a busy machine slows
//! all of them. Python is that of `scripts/bench-python`, or `BENCH_PYTHON`.

use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use fusioncap::bundle::{PreprocessorConfig, Size};
use fusioncap::config::{DecodeMode, Limits};
use fusioncap::image::Preprocessor;
use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};
use kit::{root, table};
use turbojpeg::{Compressor, PixelFormat, Subsamp};

const SIDE: u32 = 224;
const PIXELS: usize = (SIDE * SIDE) as usize;
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// JPEG quality of a typical camera.
const QUALITY: i32 = 88;
const ROUNDS: usize = 7;

struct Photo {
    name: &'static str,
    size: [u32; 2],
    progressive: bool,
    /// Decodes per contender and round.
    times: usize,
    /// Least speed-up of `fast` over Pillow.
    goal: f64,
}

const PHOTOS: [Photo; 3] = [
    Photo { name: "500 x 375", size: [500, 375], progressive: false, times: 40, goal: 2.3 },
    Photo { name: "4000 x 3000", size: [4000, 3000], progressive: false, times: 3, goal: 8.0 },
    Photo {
        name: "4000 x 3000, progressive",
        size: [4000, 3000],
        progressive: true,
        times: 3,
        goal: 2.5,
    },
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` passes no such flag and tests nothing here; `make bench` may ask for
    // parts of other benchmarks.
    let mut parts = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
    let wanted = parts.peek().is_none() || parts.any(|part| part == "decode");
    if !wanted || !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder for the photos");
    let mut pillow = Pillow::start();
    let exact = preprocessor();
    let fast = exact.clone().in_mode(DecodeMode::Fast);
    let mut rows: Vec<(String, f64, Option<f64>)> = Vec::new();
    println!("milliseconds an image{:>47} {:>7} {:>7} {:>7}", "fast", "exact", "image", "Pillow");
    for photo in &PHOTOS {
        let bytes = photo.encode();
        let path = folder.path().join("photo.jpg");
        fs::write(&path, &bytes).expect("the photo can be written");
        let mut times: [Vec<f64>; 4] = Default::default();
        for _ in 0..ROUNDS {
            times[0].push(median(photo.times, || ours(&fast, &bytes)));
            times[1].push(median(photo.times, || ours(&exact, &bytes)));
            times[2].push(median(photo.times, || plain(&bytes)));
            times[3].extend(pillow.as_mut().map(|pillow| pillow.time(&path, photo.times)));
        }
        let name = format!("{} ({:.2} MB)", photo.name, bytes.len() as f64 / 1e6);
        let [fast, exact, image, peer] = times.map(middle);
        print!("  {name:<56} {:>8.2} {:>7.2} {:>7.2}", fast * 1e3, exact * 1e3, image * 1e3);
        println!(" {:>7.2}", peer * 1e3);
        if pillow.is_some() {
            rows.push((format!("{}: Pillow / fast", photo.name), peer / fast, Some(photo.goal)));
            rows.push((format!("{}: Pillow / exact", photo.name), peer / exact, None));
        }
        rows.push((format!("{}: image crate / fast", photo.name), image / fast, None));
        rows.push((format!("{}: image crate / exact", photo.name), image / exact, None));
    }
    table::head("decoding");
    for (name, ratio, goal) in rows {
        table::row(&name, ratio, goal);
    }
    let rgb = vec![7; 3 * PIXELS];
    let mut tensor = vec![0.0; 3 * PIXELS];
    let seconds = median(200, || exact.normalise(black_box(&rgb), black_box(&mut tensor)));
    println!("\nnormalising takes {:.3} ms of it", seconds * 1e3);
}

/// Median of the seconds that `work` takes in `times` runs.
fn median<T>(times: usize, mut work: impl FnMut() -> T) -> f64 {
    let timed = |_| {
        let started = Instant::now();
        black_box(work());
        started.elapsed().as_secs_f64()
    };
    middle((0..times).map(timed).collect())
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Photo {
    /// A sample of the repository, scaled and encoded like a camera's photo.
    fn encode(&self) -> Vec<u8> {
        let sample = root("samples/boats.jpg");
        let [width, height] = self.size;
        let photo = image::open(sample).expect("the sample can be decoded");
        let rgb = photo.resize_exact(width, height, FilterType::CatmullRom).into_rgb8();
        let pixels = turbojpeg::Image {
            pixels: rgb.as_raw().as_slice(),
            width: width as usize,
            pitch: 3 * width as usize,
            height: height as usize,
            format: PixelFormat::RGB,
        };
        let mut compressor = Compressor::new().expect("libjpeg-turbo");
        compressor.set_quality(QUALITY).expect("a quality");
        compressor.set_subsamp(Subsamp::Sub2x2).expect("a subsampling");
        compressor.set_progressive(self.progressive).expect("a mode");
        compressor.compress_to_vec(pixels).expect("the photo can be encoded")
    }
}

fn preprocessor() -> Preprocessor {
    let config = PreprocessorConfig {
        do_resize: true,
        size: Size::ShortestEdge { shortest_edge: SIDE },
        resample: 3,
        do_center_crop: true,
        crop_size: Some(Size::Exact { height: SIDE, width: SIDE }),
        rescale_factor: 1.0 / 255.0,
        image_mean: MEAN,
        image_std: DEVIATION,
    };
    Preprocessor::new(config).expect("the configuration is supported")
}

fn ours(preprocessor: &Preprocessor, bytes: &[u8]) -> Vec<f32> {
    let decoded = preprocessor.decode(black_box(bytes), &Limits::default());
    let mut tensor = vec![0.0; 3 * PIXELS];
    preprocessor.normalise(&decoded.expect("the photo can be decoded").rgb, &mut tensor);
    tensor
}

/// The same with the `image` crate alone.
fn plain(bytes: &[u8]) -> Vec<f32> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().expect("a JPEG");
    let mut decoder = reader.into_decoder().expect("a JPEG");
    let orientation = decoder.orientation().expect("a readable EXIF block");
    let mut decoded = DynamicImage::from_decoder(decoder).expect("the photo can be decoded");
    decoded.apply_orientation(orientation);
    let rgb = decoded.into_rgb8();
    let (width, height) = rgb.dimensions();
    let short = width.min(height);
    let (wide, high) = (SIDE * width / short, SIDE * height / short);
    let resized = imageops::resize(&rgb, wide, high, FilterType::CatmullRom);
    let (left, top) = ((wide - SIDE) / 2, (high - SIDE) / 2);
    normalised(&imageops::crop_imm(&resized, left, top, SIDE, SIDE).to_image())
}

fn normalised(rgb: &RgbImage) -> Vec<f32> {
    let mut tensor = Vec::with_capacity(3 * PIXELS);
    for channel in 0..3 {
        let (mean, deviation) = (MEAN[channel], DEVIATION[channel]);
        let value = |value: u8| (f32::from(value) / 255.0 - mean) / deviation;
        tensor.extend(rgb.pixels().map(|pixel| value(pixel.0[channel])));
    }
    tensor
}

/// A running `peer/pillow.py`.
struct Pillow {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Pillow {
    /// None if Python or Pillow is missing; prints the reason.
    fn start() -> Option<Self> {
        let python = std::env::var_os("BENCH_PYTHON")
            .map_or_else(|| root(".tools/bench-python/bin/python"), PathBuf::from);
        let script = root("benches/peer/pillow.py");
        let child =
            Command::new(&python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let started = child.ok().and_then(|mut child| {
            let input = child.stdin.take()?;
            let output = BufReader::new(child.stdout.take()?);
            Some(Self { child, input, output })
        });
        let version = started.and_then(|mut pillow| Some((pillow.line()?, pillow)));
        let Some((version, pillow)) = version else {
            println!(
                "no rows for Pillow: {} can't run it; see scripts/bench-python",
                python.display()
            );
            return None;
        };
        println!("Pillow {version}");
        Some(pillow)
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).ok()?;
        (!line.is_empty()).then(|| line.trim().to_owned())
    }

    /// Median of the seconds that Pillow takes for the file.
    fn time(&mut self, path: &Path, times: usize) -> f64 {
        writeln!(self.input, "{} {times}", path.display()).expect("Pillow still runs");
        self.line().and_then(|line| line.parse().ok()).expect("Pillow answers with a time")
    }
}

impl Drop for Pillow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
