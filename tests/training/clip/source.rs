//! A mutable copy of the fixture, and its imported encoder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fusioncap::Result;
use fusioncap::bundle::TEXT;
use fusioncap::bundle::VISION;
use fusioncap::config::Runtime;
use fusioncap::encoder::EncoderConfig;
use fusioncap::encoder::clip::tower::Storage;
use fusioncap::encoder::clip::{Import, import};
use fusioncap::onnx::external::INLINE_LIMIT;
use ort::session::SessionInputValue;
use ort::value::Tensor;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Tensors by name: type, shape, bytes.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub fn fixture(name: &str) -> PathBuf {
    kit::root("tests/fixtures/hf-clip-tiny").join(name)
}

pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let owned = |view: &TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.tensors().iter().map(|(name, view)| (name.clone(), owned(view))).collect()
}

pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

/// A CLIP in the Hugging Face layout.
pub struct Source {
    folder: TempDir,
}

impl Source {
    /// The fixture with a tokenizer in the older format, and preprocessing.
    pub fn new() -> Self {
        let source = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["config.json", "model.safetensors"] {
            fs::copy(fixture(name), source.path(name)).unwrap();
        }
        let mut vocab: BTreeMap<String, u32> = BTreeMap::new();
        for end in ["", "</w>"] {
            for letter in '!'..='~' {
                vocab.insert(format!("{letter}{end}"), vocab.len() as u32);
            }
        }
        let merges = [("t", "h"), ("th", "e</w>"), ("o", "f</w>")];
        for (left, right) in merges {
            vocab.insert(format!("{left}{right}"), vocab.len() as u32);
        }
        vocab.extend([("<|startoftext|>".to_owned(), 510), ("<|endoftext|>".to_owned(), 511)]);
        let lines: String = merges.map(|(left, right)| format!("{left} {right}\n")).concat();
        source.write("vocab.json", &json!(vocab).to_string());
        source.write("merges.txt", &format!("#version: 0.2\n{lines}"));
        source.write(
            "preprocessor_config.json",
            &json!({"size": 48, "crop_size": 48, "do_center_crop": true}).to_string(),
        );
        source
    }

    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    pub fn edit_config(&self, change: impl FnOnce(&mut Value)) {
        let mut config: Value =
            serde_json::from_slice(&fs::read(self.path("config.json")).unwrap()).unwrap();
        change(&mut config);
        self.write("config.json", &config.to_string());
    }

    pub fn edit_weights(&self, change: impl FnOnce(&mut Tensors)) {
        let path = self.path("model.safetensors");
        let mut tensors = read_tensors(&path);
        change(&mut tensors);
        write_tensors(&path, &tensors);
    }

    pub fn import(&self) -> Encoder {
        self.import_as(Storage::Source, INLINE_LIMIT).unwrap()
    }

    pub fn try_import(&self) -> Result<Encoder> {
        self.import_as(Storage::Source, INLINE_LIMIT)
    }

    pub fn import_as(&self, storage: Storage, inline_limit: usize) -> Result<Encoder> {
        let encoder = Encoder { folder: tempfile::tempdir().unwrap() };
        self.import_to(encoder.dir(), storage, inline_limit)?;
        Ok(encoder)
    }

    pub fn import_to(
        &self,
        out: &Path,
        storage: Storage,
        inline_limit: usize,
    ) -> Result<EncoderConfig> {
        let request = Import {
            source: self.dir().into(),
            out: out.into(),
            name: None,
            storage,
            inline_limit,
        };
        import(&request, &Runtime::default())
    }
}

/// An imported encoder.
pub struct Encoder {
    folder: TempDir,
}

impl Encoder {
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn config(&self) -> EncoderConfig {
        EncoderConfig::open(self.dir()).unwrap()
    }

    /// The four outputs for the inputs of `expected.safetensors`.
    pub fn embed(&self) -> BTreeMap<&'static str, Vec<f32>> {
        let inputs = read_tensors(&fixture("expected.safetensors"));
        let integers = |name: &str| {
            let (_, shape, bytes) = &inputs[name];
            let (words, _) = bytes.as_chunks::<8>();
            (shape.clone(), words.iter().map(|word| i64::from_le_bytes(*word)).collect())
        };
        let (_, shape, bytes) = &inputs["pixel_values"];
        let (ids_shape, ids) = integers("input_ids");
        let (_, mask) = integers("attention_mask");
        let mut outputs = self.see(shape, floats(bytes));
        outputs.extend(self.read(&ids_shape, ids, mask));
        outputs
    }

    pub fn see(&self, shape: &[usize], pixels: Vec<f32>) -> BTreeMap<&'static str, Vec<f32>> {
        let input = Tensor::from_array((shape.to_vec(), pixels)).unwrap();
        self.run(VISION, vec![("pixel_values", input.into())], ["image_embeds", "patch_embeds"])
    }

    pub fn read(
        &self,
        shape: &[usize],
        ids: Vec<i64>,
        mask: Vec<i64>,
    ) -> BTreeMap<&'static str, Vec<f32>> {
        let tensor = |values| Tensor::from_array((shape.to_vec(), values)).unwrap();
        let inputs =
            vec![("input_ids", tensor(ids).into()), ("attention_mask", tensor(mask).into())];
        self.run(TEXT, inputs, ["text_embeds", "token_embeds"])
    }

    fn run(
        &self,
        graph: &str,
        inputs: Vec<(&str, SessionInputValue<'_>)>,
        names: [&'static str; 2],
    ) -> BTreeMap<&'static str, Vec<f32>> {
        let mut session =
            fusioncap::runtime::session(&Runtime::default(), &self.path(graph)).unwrap();
        let outputs = session.run(inputs).unwrap();
        let values = |name: &str| outputs[name].try_extract_tensor::<f32>().unwrap().1.to_vec();
        names.into_iter().map(|name| (name, values(name))).collect()
    }
}

/// The largest absolute difference of any output.
pub fn difference(
    found: &BTreeMap<&'static str, Vec<f32>>,
    expected: &BTreeMap<&'static str, Vec<f32>>,
) -> f32 {
    assert_eq!(found.len(), 4);
    let mut largest = 0.0_f32;
    for (name, values) in found {
        assert_eq!(values.len(), expected[name].len(), "{name}");
        for (left, right) in values.iter().zip(&expected[name]) {
            assert!(left.is_finite() && right.is_finite(), "{name}");
            largest = largest.max((left - right).abs());
        }
    }
    largest
}
