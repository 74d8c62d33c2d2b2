"""Spark Structured Streaming: captions.out to Parquet files, each caption once.

    spark-submit --packages org.apache.spark:spark-sql-kafka-0-10_2.13:4.0.0 \
        captions_spark.py BROKERS captions.sql OUTPUT_FOLDER CHECKPOINT_FOLDER [once]

The columns are those of captions.sql. With `once` it takes what is there and ends, as a nightly job
would; otherwise it goes on. The checkpoint and the output's own log make each batch count once:
read the output with Spark, or with whatever knows its `_spark_metadata`.
"""

import re
import sys

from pyspark.sql import SparkSession
from pyspark.sql.functions import col, from_json


def columns(path):
    """`name TYPE, ...` of the table's definition."""
    with open(path, encoding="utf-8") as file:
        return re.search(r"captions \(\n(.*?)\n\)", file.read(), re.DOTALL).group(1)


def main(brokers, definition, output, checkpoint, mode="on"):
    spark = SparkSession.builder.appName("captions").getOrCreate()
    # Captions name their time in UTC.
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    records = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", brokers)
        .option("subscribe", "captions.out")
        .option("startingOffsets", "earliest")
        # Without this it would read what was aborted, too.
        .option("kafka.isolation.level", "read_committed")
        .load()
    )
    # A record that does not fit ends the job: none is taken for a row of NULLs.
    parsed = from_json(col("value").cast("string"), columns(definition), {"mode": "FAILFAST"})
    captions = records.select(parsed.alias("caption")).select("caption.*")
    writer = captions.writeStream.format("parquet").option("path", output).option("checkpointLocation", checkpoint)
    if mode == "once":
        writer = writer.trigger(availableNow=True)
    writer.start().awaitTermination()


if __name__ == "__main__":
    main(*sys.argv[1:])
