"""What the chart refuses, and that it names the value which is at fault."""

import unittest

from chart import Refused, helm, render, CHART, NEWEST

SASL = {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512"}


def kafka(**fields):
    return {"config": {"kafka": fields}}


def runtime(**fields):
    return {"config": {"runtime": fields}}


def keda(partitions=6, **fields):
    return {"partitions": partitions, "autoscaling": {"keda": {"enabled": True, **fields}}}


class Errors(unittest.TestCase):
    def refused(self, values, *told):
        with self.assertRaises(Refused) as caught:
            render(values)
        for part in told:
            self.assertIn(part, str(caught.exception))

    def test_without_values_it_says_what_is_required(self):
        with self.assertRaises(Refused) as caught:
            helm("template", "cap", str(CHART), "--kube-version", f"{NEWEST}.0")
        self.assertIn("config.kafka.brokers is required", str(caught.exception))

    def test_unknown_keys_are_named(self):
        self.refused({"replica": 2}, "additional properties 'replica' not allowed")
        self.refused({"image": {"tags": "1"}}, "/image", "'tags' not allowed")
        self.refused({"autoscaling": {"keda": {"lagTreshold": 1}}}, "/autoscaling/keda", "'lagTreshold'")
        self.refused(kafka(broker="a:1"), "/config/kafka", "'broker' not allowed")
        self.refused({"config": {"batches": {}}}, "/config", "'batches' not allowed")

    def test_wrong_types_and_ranges_are_named(self):
        self.refused({"replicas": "two"}, "/replicas", "want integer")
        self.refused({"config": {"batch": {"size": 4096}}}, "/config/batch/size", "maximum")
        self.refused({"config": {"model": {"precision": "bf16"}}}, "/config/model/precision", "'auto', 'fp32', 'fp16', 'int8'")
        self.refused({"monitor": {"kind": "Monitor"}}, "/monitor/kind", "PodMonitor")
        self.refused({"image": {"digest": "sha256:1"}}, "/image/digest")
        self.refused({"prometheusRule": {"disabled": ["FusionCapLate"]}}, "/prometheusRule/disabled")

    def test_workers_beyond_the_partitions(self):
        self.refused({"replicas": 7, "partitions": 6}, "replicas is 7", "images.in has 6 partitions")
        scaled = keda()
        scaled["autoscaling"]["maxReplicas"] = 7
        self.refused(scaled, "autoscaling.maxReplicas is 7", "6 partitions")
        hpa = {"partitions": 4, "autoscaling": {"maxReplicas": 5, "hpa": {"enabled": True}}}
        self.refused(hpa, "autoscaling.maxReplicas is 5", "4 partitions")

    def test_autoscaling_needs_the_partitions(self):
        self.refused({"autoscaling": {"keda": {"enabled": True}}}, "partitions is required for autoscaling")

    def test_two_autoscalers(self):
        both = {"partitions": 6, "autoscaling": {"keda": {"enabled": True}, "hpa": {"enabled": True}}}
        self.refused(both, "autoscaling.keda.enabled and autoscaling.hpa.enabled are both true")

    def test_fewest_workers_above_the_most(self):
        self.refused({"partitions": 6, "autoscaling": {"minReplicas": 7, "keda": {"enabled": True}}},
                     "autoscaling.minReplicas is 7, above the maximum, 6")
        self.refused({"partitions": 6, "autoscaling": {"minReplicas": 0, "hpa": {"enabled": True}}},
                     "autoscaling.minReplicas is 0: only KEDA scales to 0")

    def test_processor_time_needs_a_request(self):
        self.refused({"partitions": 6, "resources": {"requests": {"cpu": None}},
                      "autoscaling": {"hpa": {"enabled": True}}}, "resources.requests.cpu is required")

    def test_sasl_needs_a_secret_for_keda(self):
        self.refused({**keda(), **kafka(properties=SASL)}, "autoscaling.keda.sasl.secret is required", "SASL_SSL")
        both = keda(sasl={"secret": "msk"}, authenticationRef={"name": "kafka"})
        self.refused({**both, **kafka(properties=SASL)}, "are both set: KEDA accepts only one")
        aws = {**SASL, "sasl.mechanism": "AWS_MSK_IAM"}
        self.refused({**keda(sasl={"secret": "msk"}), **kafka(properties=aws)}, "'sasl.mechanism' is AWS_MSK_IAM")

    def test_seconds_need_prometheus(self):
        self.refused(keda(trigger="lag-seconds"), "autoscaling.keda.lagSeconds.serverAddress is required", "trigger is lag-seconds")
        self.refused(keda(trigger="lag-seconds", lagSeconds={"serverAddress": "prometheus:9090"}),
                     "autoscaling.keda.lagSeconds.serverAddress is prometheus:9090", "allowed: http://HOST:PORT")
        self.refused(keda(trigger="lag-seconds", lagSeconds={"serverAddress": "http://me:x@prometheus:9090"}),
                     "autoscaling.keda.lagSeconds.serverAddress has credentials", "authenticationRef")
        self.refused(keda(trigger="seconds"), "/autoscaling/keda/trigger", "'lag', 'lag-seconds'")
        self.refused(keda(trigger="lag-seconds", lagSeconds={"threshold": 0}), "/autoscaling/keda/lagSeconds/threshold", "minimum")
        self.refused(keda(trigger="lag-seconds", lagSeconds={"serverAddress": "http://p", "perWorkerThreshold": 59}),
                     "autoscaling.keda.lagSeconds.perWorkerThreshold is 59", "below autoscaling.keda.lagSeconds.threshold, 60")
        from_zero = keda(trigger="lag-seconds", lagSeconds={"serverAddress": "http://prometheus:9090"})
        render({**from_zero, **kafka(properties=SASL)})
        from_zero["autoscaling"]["minReplicas"] = 0
        self.refused({**from_zero, **kafka(properties=SASL)}, "autoscaling.keda.sasl.secret is required", "SASL_SSL")

    def test_any_bucket_only_by_name(self):
        self.refused({"config": {"s3": {"allowed_buckets": []}}}, "config.s3.allowed_buckets is required", "allowAnyBucket")
        render({"config": {"s3": {"allowed_buckets": []}}, "allowAnyBucket": True})

    def test_a_grace_too_short_for_the_drain(self):
        self.refused({"terminationGracePeriodSeconds": 24}, "terminationGracePeriodSeconds is 24", "at least 25")
        self.refused({"terminationGracePeriodSeconds": 34, "preStop": {"sleepSeconds": 10}},
                     "terminationGracePeriodSeconds is 34", "preStop.sleepSeconds (10)", "at least 35")
        self.refused(runtime(drain_timeout_ms=20001, termination_grace_ms=25000),
                     "config.runtime.termination_grace_ms is 25000", "at least 25001")
        self.refused({"terminationGracePeriodSeconds": 60, **runtime(termination_grace_ms=90000)},
                     "terminationGracePeriodSeconds is 60", "90000")

    def test_a_pause_on_a_kubernetes_that_has_none(self):
        with self.assertRaises(Refused) as caught:
            render({"preStop": {"sleepSeconds": 5}}, kubernetes="1.29")
        self.assertIn("preStop.sleepSeconds is 5, which needs Kubernetes 1.30", str(caught.exception))
        render({"preStop": {"sleepSeconds": 5}}, kubernetes="1.30")

    def test_ids_that_differ_between_workers(self):
        for field in ("transactional_id", "group_instance_id"):
            self.refused(kafka(**{field: "x"}), f"config.kafka.{field} must differ between workers")

    def test_literal_secrets(self):
        for section, field in (("s3", "access_key_id"), ("s3", "secret_access_key"), ("s3", "session_token"),
                               ("registry", "password"), ("registry", "bearer_token")):
            self.refused({"config": {section: {field: "x"}}}, f"config.{section}.{field} is secret", "secretEnv")
        for name in ("sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"):
            self.refused(kafka(properties={name: "x"}), f"'{name}' is secret", "secretEnv")
        for name in ("FUSIONCAP_S3__SECRET_ACCESS_KEY", "FUSIONCAP_KAFKA__PROPERTIES__SASL_PASSWORD",
                     "FUSIONCAP_REGISTRY__PASSWORD", "FUSIONCAP_REGISTRY__BEARER_TOKEN", "AWS_SECRET_ACCESS_KEY"):
            self.refused({"extraEnv": [{"name": name, "value": "x"}]}, f"extraEnv '{name}' is secret")
        for name, value in (("FUSIONCAP_KAFKA__PROPERTIES", "{sasl.password: x}"),
                            ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer x"),
                            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-api-key=x")):
            self.refused({"extraEnv": [{"name": name, "value": value}]}, f"extraEnv '{name}' is secret")

    def test_credentials_in_a_url(self):
        url = "https://me:x@store:9000"
        self.refused({"config": {"s3": {"endpoint": url}}}, "config.s3.endpoint has credentials")
        self.refused({"config": {"registry": {"url": url}}}, "config.registry.url has credentials")
        for name in ("FUSIONCAP_S3__ENDPOINT", "FUSIONCAP_REGISTRY__URL", "OTEL_EXPORTER_OTLP_ENDPOINT"):
            self.refused({"extraEnv": [{"name": name, "value": url}]}, f"extraEnv '{name}' has credentials")

    def test_what_only_looks_secret(self):
        where = {"ssl.key.location": "/k", "sasl.oauthbearer.token.endpoint.url": "https://a/b"}
        registry = {"url": "https://registry/team@home", "username": "captions", "ca_file": "/etc/ca.pem"}
        plain = {**kafka(properties=where), "extraEnv": [
            {"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": "/var/run/token"},
            {"name": "FUSIONCAP_S3__SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}},
            {"name": "FUSIONCAP_REGISTRY__PASSWORD", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}},
            {"name": "FUSIONCAP_KAFKA__PROPERTIES", "value": "{ssl.key.location: /k}"},
            {"name": "OTEL_EXPORTER_OTLP_HEADERS", "value": "X-Scope-OrgID=captions"},
        ]}
        plain["config"]["registry"] = registry
        render(plain)

    def test_a_model_that_is_nowhere(self):
        self.refused({"config": {"model": {"path": None}}}, "config.model.path is required")
        self.refused({"model": {"existingClaim": "m"}}, "config.model.path is /usr/share", "model.mountPath, /models")
        self.refused({"model": {"existingClaim": "m", "initContainer": {"image": "i"}}},
                     "model.existingClaim and model.initContainer.image are both set")

    def test_a_gpu_that_nobody_has_or_uses(self):
        self.refused(runtime(providers=["cuda"]), "gpu.count is 0", "[cuda]")
        self.refused({"gpu": {"count": 1}}, "config.runtime.providers is [cpu]")
        render(runtime(providers=["cuda"], fallback=True))

    def test_a_cache_that_nobody_may_write(self):
        gpu = {"gpu": {"count": 1}, **runtime(providers=["tensorrt"], tensorrt_cache="/cache/engines")}
        self.refused(gpu, "config.runtime.tensorrt_cache is /cache/engines", "extraVolumeMounts")
        render({**gpu, "extraVolumeMounts": [{"name": "cache", "mountPath": "/cache"}]})
        render({**gpu, **runtime(providers=["tensorrt"], tensorrt_cache="/tmp/engines")})

    def test_a_port_that_nobody_reaches(self):
        self.refused({"config": {"http": {"listen": "127.0.0.1:8080"}}}, "config.http.listen is 127.0.0.1:8080")

    def test_a_budget_of_two_minds(self):
        self.refused({"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}},
                     "podDisruptionBudget.minAvailable and podDisruptionBudget.maxUnavailable")
