-- Two bundles on the same references: captions.jsonl from captions.out, canary.jsonl from the
-- canary's topic. Ids are made from the reference's place, so they are the same on both.
CREATE OR REPLACE VIEW pairs AS
SELECT id, uri, serving.caption AS serving, canary.caption AS canary,
       serving.score AS serving_score, canary.score AS canary_score
FROM read_json('captions.jsonl', format = 'newline_delimited') AS serving
JOIN read_json('canary.jsonl', format = 'newline_delimited') AS canary USING (id, uri);

SELECT count(*) AS pairs,
       round(100 * avg((serving = canary)::INT), 1) AS same_percent,
       round(avg(serving_score), 3) AS serving_score,
       round(avg(canary_score), 3) AS canary_score,
       round(avg(len(string_split(serving, ' '))), 1) AS serving_words,
       round(avg(len(string_split(canary, ' '))), 1) AS canary_words
FROM pairs;

SELECT uri, serving, canary, round(canary_score - serving_score, 3) AS gain
FROM pairs WHERE serving <> canary ORDER BY gain LIMIT 5;
