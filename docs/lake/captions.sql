-- The captions as an Iceberg table (Spark SQL). schemas/caption.v1.schema.json says what each column
-- means; `scripts/operations guide` holds the two together. `embedding` is there where
-- model.embeddings is on, and NULL otherwise.
CREATE TABLE IF NOT EXISTS lake.captions (
  id STRING NOT NULL,
  uri STRING NOT NULL,
  bucket STRING NOT NULL,
  key STRING NOT NULL,
  version_id STRING,
  etag STRING,
  content_type STRING NOT NULL,
  width INT NOT NULL,
  height INT NOT NULL,
  caption STRING NOT NULL,
  score DOUBLE NOT NULL,
  model_name STRING NOT NULL,
  model_version STRING NOT NULL,
  model_digest STRING NOT NULL,
  source_topic STRING NOT NULL,
  source_partition INT NOT NULL,
  source_offset BIGINT NOT NULL,
  captioned_at TIMESTAMP NOT NULL,
  attributes MAP<STRING, STRING> NOT NULL,
  embedding ARRAY<FLOAT>
)
USING iceberg
PARTITIONED BY (days(captioned_at));
