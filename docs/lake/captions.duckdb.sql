-- Lines of captions.out, a JSON object each, as a table in DuckDB and as a Parquet file.
-- schemas/caption.v1.schema.json says what each column means; `scripts/operations guide` holds the
-- two together.
CREATE OR REPLACE TABLE captions AS
SELECT * FROM read_json('captions.jsonl', format = 'newline_delimited', columns = {
  id: 'VARCHAR',
  uri: 'VARCHAR',
  bucket: 'VARCHAR',
  key: 'VARCHAR',
  version_id: 'VARCHAR',
  etag: 'VARCHAR',
  content_type: 'VARCHAR',
  width: 'INTEGER',
  height: 'INTEGER',
  caption: 'VARCHAR',
  score: 'DOUBLE',
  model_name: 'VARCHAR',
  model_version: 'VARCHAR',
  model_digest: 'VARCHAR',
  source_topic: 'VARCHAR',
  source_partition: 'INTEGER',
  source_offset: 'BIGINT',
  captioned_at: 'TIMESTAMPTZ',
  attributes: 'MAP(VARCHAR, VARCHAR)',
  embedding: 'FLOAT[]'
})
-- Whoever reads a topic to a file and is interrupted has some lines twice; ids are the same then.
QUALIFY row_number() OVER (PARTITION BY id ORDER BY captioned_at) = 1;

COPY captions TO 'captions.parquet' (FORMAT parquet, COMPRESSION zstd);
