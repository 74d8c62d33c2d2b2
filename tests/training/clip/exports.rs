//! Existing ONNX exports: imported if they have the required outputs, otherwise refused.

use std::fs;
use std::path::Path;

use fusioncap::bundle::TEXT;
use fusioncap::bundle::VISION;
use fusioncap::encoder::clip::tower::Storage;
use fusioncap::onnx::external::{INLINE_LIMIT, data_path};
use fusioncap::onnx::graph::{Dim, Graph};
use fusioncap::onnx::proto::{DataType, GraphProto, ModelProto};
use prost::Message;

use super::source::{Encoder, Source, difference};

fn load(path: &Path) -> ModelProto {
    ModelProto::decode(fs::read(path).unwrap().as_slice()).unwrap()
}

fn save(source: &Source, name: &str, model: &ModelProto) {
    fs::create_dir_all(source.path("onnx")).unwrap();
    fs::write(source.path("onnx").join(name), model.encode_to_vec()).unwrap();
}

/// The fixture with its imported towers as exports, without weights.
fn exported() -> (Source, Encoder) {
    let source = Source::new();
    let encoder = source.import();
    source.remove("model.safetensors");
    save(&source, "vision_model.onnx", &load(&encoder.path(VISION)));
    save(&source, "text_model.onnx", &load(&encoder.path(TEXT)));
    (source, encoder)
}

fn without_output(mut model: ModelProto, name: &str) -> ModelProto {
    model.graph.as_mut().unwrap().output.retain(|output| output.name != name);
    model
}

fn refusal(source: &Source) -> String {
    let Err(error) = source.try_import() else { panic!("it was imported") };
    assert_eq!(error.exit_code(), 2, "{error}");
    error.chain()
}

#[test]
fn exports_with_all_outputs_are_imported() {
    let (source, encoder) = exported();
    let taken = source.import();
    assert_eq!(difference(&taken.embed(), &encoder.embed()), 0.0);
    let (found, expected) = (taken.config(), encoder.config());
    assert_eq!((found.embedding_dim, found.num_patches), (40, 36));
    assert_eq!(found.text_max_length, expected.text_max_length);
}

#[test]
fn both_towers_in_one_file_are_split() {
    let (source, encoder) = exported();
    let mut whole = load(&encoder.path(VISION));
    let mut text = load(&encoder.path(TEXT)).graph.unwrap();
    rename(&mut text);
    let graph = whole.graph.as_mut().unwrap();
    graph.node.extend(text.node);
    graph.initializer.extend(text.initializer);
    graph.input.extend(text.input);
    graph.output.extend(text.output);
    fs::remove_dir_all(source.path("onnx")).unwrap();
    save(&source, "model.onnx", &whole);
    let taken = source.import();
    assert_eq!(difference(&taken.embed(), &encoder.embed()), 0.0);
    let vision = load(&taken.path(VISION)).graph.unwrap();
    let inputs: Vec<&str> = vision.input.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(inputs, ["pixel_values"]);
    assert_eq!(vision.node.len(), load(&encoder.path(VISION)).graph.unwrap().node.len());
}

/// Renames every internal value of `graph`.
fn rename(graph: &mut GraphProto) {
    let outside: Vec<String> =
        graph.input.iter().chain(&graph.output).map(|value| value.name.clone()).collect();
    let change = |name: &mut String| {
        if !outside.contains(name) {
            name.insert_str(0, "text/");
        }
    };
    for node in &mut graph.node {
        node.name.insert_str(0, "text/");
        node.input.iter_mut().chain(&mut node.output).for_each(change);
    }
    graph.initializer.iter_mut().for_each(|tensor| change(&mut tensor.name));
}

#[test]
fn external_data_is_copied() {
    let source = Source::new();
    let encoder = source.import_as(Storage::Source, 0).unwrap();
    source.remove("model.safetensors");
    for (from, to) in [(VISION, "vision_model.onnx"), (TEXT, "text_model.onnx")] {
        let mut model = load(&encoder.path(from));
        let tensors = &mut model.graph.as_mut().unwrap().initializer;
        let entries = tensors.iter_mut().flat_map(|tensor| &mut tensor.external_data);
        for entry in entries.filter(|entry| entry.key == "location") {
            entry.value = format!("{to}_data");
        }
        save(&source, to, &model);
        let data = source.path("onnx").join(format!("{to}_data"));
        fs::copy(data_path(&encoder.path(from)), data).unwrap();
    }
    let taken = source.import_as(Storage::Source, INLINE_LIMIT).unwrap();
    assert!(data_path(&taken.path(VISION)).is_file());
    assert_eq!(difference(&taken.embed(), &encoder.embed()), 0.0);

    fs::remove_file(source.path("onnx/vision_model.onnx_data")).unwrap();
    let line = refusal(&source);
    assert!(line.contains("can't copy an export's weights"), "{line}");
    assert!(line.contains("vision_model.onnx_data"), "{line}");
}

#[test]
fn missing_outputs_are_named() {
    let (source, encoder) = exported();
    let vision = without_output(load(&encoder.path(VISION)), "patch_embeds");
    let text = without_output(load(&encoder.path(TEXT)), "token_embeds");
    save(&source, "vision_model.onnx", &vision);
    save(&source, "text_model.onnx", &text);
    let line = refusal(&source);
    assert!(
        line.contains(
            "missing: vision_model.onnx lacks patch_embeds (its outputs: image_embeds); \
             text_model.onnx lacks token_embeds (its outputs: text_embeds)"
        ),
        "{line}"
    );
    assert!(line.contains("model.safetensors"), "{line}");

    fs::remove_file(source.path("onnx/text_model.onnx")).unwrap();
    let absent = refusal(&source);
    assert!(absent.contains("onnx/text_model.onnx"), "{absent}");

    fs::write(source.path("onnx/text_model.onnx"), "<html>not found</html>").unwrap();
    let page = refusal(&source);
    assert!(page.contains("not an ONNX model") && page.contains("text_model.onnx"), "{page}");
}

/// A text tower that looks up the first of `inputs` in a table and adds the others.
fn table(inputs: &[&str], width: usize) -> ModelProto {
    let mut graph = Graph::new("text");
    let tokens = [Dim::Free("batch"), Dim::Free("tokens")];
    let ids = graph.input(inputs[0], DataType::Int64, &tokens);
    let rows: Vec<f32> = (0..512 * width).map(|entry| (entry % 251) as f32 / 251.0).collect();
    let words = graph.weight("words", &[512, width], &rows);
    let mut token_embeds = graph.gather(&words, &ids, 0);
    for name in &inputs[1..] {
        let other = graph.input(name, DataType::Int64, &tokens);
        let number = graph.cast(&other, DataType::Float);
        let column = graph.unsqueeze(&number, &[-1]);
        token_embeds = graph.add(&token_embeds, &column);
    }
    let first = graph.int(0);
    let text_embeds = graph.gather(&token_embeds, &first, 1);
    let dim = Dim::Fixed(width);
    graph.output("text_embeds", &text_embeds, DataType::Float, &[tokens[0], dim]);
    graph.output("token_embeds", &token_embeds, DataType::Float, &[tokens[0], tokens[1], dim]);
    graph.model()
}

#[test]
fn a_text_tower_needs_no_mask_and_may_have_no_other_input() {
    let (source, _) = exported();
    save(&source, "text_model.onnx", &table(&["input_ids"], 40));
    let outputs = source.import().read(&[1, 2], vec![3, 511], vec![1, 1]);
    assert_eq!(outputs["token_embeds"].len(), 2 * 40);

    save(&source, "text_model.onnx", &table(&["input_ids", "position_ids"], 40));
    let line = refusal(&source);
    assert!(line.contains("input: position_ids, allowed: input_ids, attention_mask"), "{line}");

    save(&source, "text_model.onnx", &table(&["input_ids"], 24));
    let narrow = refusal(&source);
    assert!(narrow.contains("unexpected shapes") && narrow.contains("[2, 24]"), "{narrow}");
}

#[test]
fn an_export_that_does_not_run_is_refused() {
    let (source, encoder) = exported();
    let mut model = load(&encoder.path(VISION));
    model.graph.as_mut().unwrap().node[0].op_type = "Imagine".into();
    save(&source, "vision_model.onnx", &model);
    let line = refusal(&source);
    assert!(line.contains("can't load an ONNX export"), "{line}");
    assert!(line.contains("Imagine"), "{line}");
}
