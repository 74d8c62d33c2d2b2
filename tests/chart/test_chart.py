"""What the templates decide, by the values: asserted on the objects that Helm renders."""

import unittest

import yaml

from chart import environment, none, one, pod, pods, render, worker


def runtime(**fields):
    return {"config": {"runtime": fields}}


def scaled(which, **more):
    return {"partitions": 6, "autoscaling": {which: {"enabled": True, **more}}}


class Identity(unittest.TestCase):
    def test_ids_follow_the_pod(self):
        variables = environment(render({"config": {"kafka": {"group": "g"}}}))
        self.assertEqual(variables["FUSIONCAP_KAFKA__TRANSACTIONAL_ID"], "g-captions-$(POD_NAME)")
        self.assertEqual(variables["FUSIONCAP_KAFKA__GROUP_INSTANCE_ID"], "captions-$(POD_NAME)")
        # Kubernetes fills in only what was defined before.
        self.assertEqual(next(iter(variables)), "POD_NAME")

    def test_static_membership_can_be_left(self):
        variables = environment(render({"staticMembership": False}))
        self.assertNotIn("FUSIONCAP_KAFKA__GROUP_INSTANCE_ID", variables)
        self.assertIn("FUSIONCAP_KAFKA__TRANSACTIONAL_ID", variables)

    def test_the_service_selects_workers_alone(self):
        manifests = render()
        selector = one(manifests, "Service")["spec"]["selector"].items()
        self.assertLessEqual(selector, one(manifests, "StatefulSet")["spec"]["template"]["metadata"]["labels"].items())
        smoke = one(manifests, "Pod")["metadata"]["labels"].items()
        self.assertFalse(selector <= smoke)

    def test_names(self):
        self.assertEqual(one(render(release="fusioncap-a"), "StatefulSet")["metadata"]["name"], "fusioncap-a")
        self.assertEqual(one(render({"fullnameOverride": "x"}), "StatefulSet")["metadata"]["name"], "x")
        long = one(render(release="r" * 53), "StatefulSet")["metadata"]["name"]
        self.assertLessEqual(len(long), 52)

    def test_a_role_for_the_account(self):
        role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/a"}
        manifests = render({"serviceAccount": {"annotations": role}})
        self.assertEqual(one(manifests, "ServiceAccount")["metadata"]["annotations"], role)
        existing = render({"serviceAccount": {"create": False, "name": "mine"}})
        self.assertTrue(none(existing, "ServiceAccount"))
        self.assertEqual(pod(existing)["serviceAccountName"], "mine")

    def test_image(self):
        image = {"registry": "r.example/", "repository": "a/b", "tag": "1", "digest": "sha256:" + "0" * 64}
        self.assertEqual(worker(render({"image": image}))["image"], "r.example/a/b@sha256:" + "0" * 64)
        image["digest"] = ""
        self.assertEqual(worker(render({"image": image}))["image"], "r.example/a/b:1")

    def test_with_a_gpu_the_image_is_the_one_with_cuda(self):
        gpu = {"gpu": {"count": 1}, **runtime(providers=["cuda"])}
        version = worker(render())["image"].removeprefix("fusioncap:")
        self.assertEqual(worker(render(gpu))["image"], f"fusioncap:{version}-cuda")
        self.assertEqual(worker(render({**gpu, "image": {"tag": "2"}}))["image"], "fusioncap:2")


class Configuration(unittest.TestCase):
    def test_it_is_passed_through(self):
        config = {
            "kafka": {"brokers": "a:1,b:2", "properties": {"client.id": "x", "queued.min.messages": 100000}},
            "s3": {"allowed_buckets": ["photos/a b/"], "endpoint": "http://s:9000"},
            "model": {"path": "/usr/share/fusioncap/models/tiny"},
            # Helm reads numbers as floating point.
            "limits": {"max_buffered_bytes": 1099511627776, "max_object_bytes": 4294967296},
        }
        data = one(render({"config": config}), "ConfigMap")["data"]["worker.yaml"]
        self.assertEqual(yaml.safe_load(data), config)
        self.assertIn("1099511627776", data)

    def test_another_configuration_is_another_pod(self):
        def checksum(values):
            template = one(render(values), "StatefulSet")["spec"]["template"]
            return template["metadata"]["annotations"]["checksum/config"]

        self.assertEqual(checksum({}), checksum({"replicas": 2}))
        self.assertNotEqual(checksum({}), checksum({"config": {"batch": {"size": 4}}}))

    def test_secrets_are_named_alone(self):
        name = "FUSIONCAP_KAFKA__PROPERTIES__SASL_PASSWORD"
        variables = environment(render({"secretEnv": {name: {"secret": "s", "key": "k"}}}))
        self.assertEqual(variables[name], {"secretKeyRef": {"name": "s", "key": "k"}})

    def test_the_port_is_the_workers(self):
        manifests = render({"config": {"http": {"listen": "0.0.0.0:9000"}}})
        self.assertEqual(worker(manifests)["ports"][0]["containerPort"], 9000)
        self.assertEqual(one(manifests, "Service")["spec"]["ports"][0]["port"], 9000)


class Stopping(unittest.TestCase):
    def grace(self, values):
        """(Kubernetes' seconds, what the worker knows in milliseconds)"""
        manifests = render(values)
        told = environment(manifests)["FUSIONCAP_RUNTIME__TERMINATION_GRACE_MS"]
        return pod(manifests)["terminationGracePeriodSeconds"], int(told)

    def test_grace_is_computed(self):
        self.assertEqual(self.grace({}), (30, 30000))
        self.assertEqual(self.grace(runtime(drain_timeout_ms=45001)), (56, 56000))
        self.assertEqual(self.grace(runtime(termination_grace_ms=90000)), (90, 90000))
        self.assertEqual(self.grace({"preStop": {"sleepSeconds": 10}}), (40, 30000))

    def test_grace_can_be_told(self):
        self.assertEqual(self.grace({"terminationGracePeriodSeconds": 25}), (25, 25000))
        told = {"terminationGracePeriodSeconds": 100, "preStop": {"sleepSeconds": 10}}
        self.assertEqual(self.grace({**told, **runtime(termination_grace_ms=90000)}), (100, 90000))

    def test_a_pause_only_where_asked_for(self):
        self.assertNotIn("lifecycle", worker(render()))
        pause = worker(render({"preStop": {"sleepSeconds": 5}}))["lifecycle"]["preStop"]
        self.assertEqual(pause, {"sleep": {"seconds": 5}})

    def test_probes(self):
        container = worker(render({"probes": {"liveness": {"failureThreshold": 9}}}))
        paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
        self.assertEqual(paths, {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"})
        self.assertEqual(container["livenessProbe"]["failureThreshold"], 9)

    def test_budget(self):
        self.assertEqual(one(render(), "PodDisruptionBudget")["spec"]["maxUnavailable"], 1)
        budget = one(render({"podDisruptionBudget": {"minAvailable": "50%"}}), "PodDisruptionBudget")["spec"]
        self.assertEqual(budget["minAvailable"], "50%")
        self.assertNotIn("maxUnavailable", budget)
        self.assertTrue(none(render({"podDisruptionBudget": {"enabled": False}}), "PodDisruptionBudget"))


class Model(unittest.TestCase):
    def where(self, values):
        manifests = render(values)
        volume = [volume for volume in pod(manifests)["volumes"] if volume["name"] == "model"]
        mount = [mount for mount in worker(manifests)["volumeMounts"] if mount["name"] == "model"]
        return manifests, *volume, *mount

    def test_in_the_image(self):
        self.assertEqual(len(self.where({})), 1)

    def test_from_s3(self):
        manifests, volume, mount = self.where({"config": {"model": {"path": "s3://m/a"}}, "model": {"size": "2Gi"}})
        self.assertEqual(volume["emptyDir"], {"sizeLimit": "2Gi"})
        self.assertEqual(environment(manifests)["FUSIONCAP_MODEL_DIR"], mount["mountPath"])
        self.assertFalse(mount.get("readOnly", False))

    def test_from_a_claim(self):
        values = {"config": {"model": {"path": "/models"}}, "model": {"existingClaim": "m", "subPath": "v3"}}
        manifests, volume, mount = self.where(values)
        self.assertEqual(volume["persistentVolumeClaim"], {"claimName": "m", "readOnly": True})
        self.assertEqual(mount, {"name": "model", "mountPath": "/models", "readOnly": True, "subPath": "v3"})
        self.assertNotIn("FUSIONCAP_MODEL_DIR", environment(manifests))

    def test_from_an_init_container(self):
        init = {"image": "m:1", "command": ["cp"], "args": ["-r", "/m", "/models/m"]}
        manifests, volume, _ = self.where({"config": {"model": {"path": "/models/m"}}, "model": {"initContainer": init}})
        self.assertIn("emptyDir", volume)
        (container,) = pod(manifests)["initContainers"]
        self.assertEqual((container["image"], container["command"]), ("m:1", ["cp"]))
        self.assertIn({"name": "model", "mountPath": "/models"}, container["volumeMounts"])


class Placement(unittest.TestCase):
    def test_a_gpu(self):
        values = {"gpu": {"count": 1, "runtimeClassName": "nvidia"}, **runtime(providers=["cuda"])}
        manifests = render(values)
        resources = worker(manifests)["resources"]
        self.assertEqual(resources["limits"]["nvidia.com/gpu"], 1)
        self.assertEqual(resources["limits"]["memory"], "2Gi")
        self.assertIn({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}, pod(manifests)["tolerations"])
        self.assertEqual(pod(manifests)["runtimeClassName"], "nvidia")
        self.assertNotIn("nvidia.com/gpu", worker(render())["resources"]["limits"])

    def test_the_user_can_be_the_platforms(self):
        nobody = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}
        for _, spec in pods(render({"podSecurityContext": nobody})):
            security = spec["securityContext"]
            self.assertTrue(security["runAsNonRoot"])
            self.assertFalse(set(nobody) & set(security))

    def test_where_it_may_run(self):
        values = {"nodeSelector": {"a": "b"}, "priorityClassName": "high", "tolerations": [{"key": "t", "operator": "Exists"}],
                  "affinity": {"nodeAffinity": {}}, "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z",
                                                                                   "whenUnsatisfiable": "DoNotSchedule"}]}
        manifests = render(values)
        for key in ("nodeSelector", "priorityClassName", "tolerations", "affinity"):
            self.assertEqual(pod(manifests)[key], values[key])
        (spread,) = pod(manifests)["topologySpreadConstraints"]
        labels = one(manifests, "StatefulSet")["spec"]["selector"]["matchLabels"]
        self.assertEqual(spread["labelSelector"], {"matchLabels": labels})


class Scaling(unittest.TestCase):
    def test_a_fixed_number(self):
        manifests = render({"replicas": 3})
        self.assertEqual(one(manifests, "StatefulSet")["spec"]["replicas"], 3)
        self.assertTrue(none(manifests, "ScaledObject") and none(manifests, "HorizontalPodAutoscaler"))

    def test_by_lag(self):
        manifests = render(scaled("keda", lagThreshold=500))
        self.assertNotIn("replicas", one(manifests, "StatefulSet")["spec"])
        spec = one(manifests, "ScaledObject")["spec"]
        self.assertEqual((spec["minReplicaCount"], spec["maxReplicaCount"]), (1, 6))
        self.assertEqual(spec["scaleTargetRef"]["kind"], "StatefulSet")
        (trigger,) = spec["triggers"]
        self.assertEqual(trigger["metadata"]["lagThreshold"], "500")
        self.assertEqual(trigger["metadata"]["excludePersistentLag"], "false")
        # With KEDA's own bound, 22 workers of 24 would be within the autoscaler's tolerance.
        self.assertEqual(trigger["metadata"]["allowIdleConsumers"], "true")
        self.assertEqual(trigger["metadata"]["topic"], "images.in")
        self.assertNotIn("authenticationRef", trigger)
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        self.assertGreaterEqual(behavior["scaleDown"]["stabilizationWindowSeconds"], 300)
        self.assertTrue(none(manifests, "TriggerAuthentication"))

    def test_keda_signs_in_as_the_worker_does(self):
        words = {"PLAIN": "plaintext", "SCRAM-SHA-256": "scram_sha256", "SCRAM-SHA-512": "scram_sha512"}
        for mechanism, word in words.items():
            properties = {"security.protocol": "SASL_SSL", "sasl.mechanism": mechanism}
            more = {"sasl": {"secret": "user"}, "secretTargetRef": [{"parameter": "ca", "name": "c", "key": "ca.crt"}]}
            manifests = render({**scaled("keda", **more), "config": {"kafka": {"properties": properties}}})
            (trigger,) = one(manifests, "ScaledObject")["spec"]["triggers"]
            self.assertEqual((trigger["metadata"]["sasl"], trigger["metadata"]["tls"]), (word, "enable"))
            signing = one(manifests, "TriggerAuthentication")
            self.assertEqual(trigger["authenticationRef"]["name"], signing["metadata"]["name"])
            self.assertEqual(signing["spec"]["secretTargetRef"], [
                {"parameter": "username", "name": "user", "key": "username"},
                {"parameter": "password", "name": "user", "key": "password"},
                {"parameter": "ca", "name": "c", "key": "ca.crt"},
            ])

    def test_keda_may_see_the_brokers_under_other_names(self):
        more = {"bootstrapServers": "kafka.kafka.svc.cluster.local:9092", "version": "3.6.0"}
        (trigger,) = one(render(scaled("keda", metadata=more)), "ScaledObject")["spec"]["triggers"]
        self.assertLessEqual(more.items(), trigger["metadata"].items())
        self.assertEqual(trigger["metadata"]["consumerGroup"], "fusioncap")

    def test_keda_signs_in_by_another_object(self):
        reference = {"name": "kafka", "kind": "ClusterTriggerAuthentication"}
        manifests = render(scaled("keda", authenticationRef=reference))
        self.assertEqual(one(manifests, "ScaledObject")["spec"]["triggers"][0]["authenticationRef"], reference)
        self.assertTrue(none(manifests, "TriggerAuthentication"))

    def test_by_seconds(self):
        address = "http://prometheus:9090"
        manifests = render(scaled("keda", trigger="lag-seconds", lagSeconds={"serverAddress": address, "threshold": 90}))
        triggers = one(manifests, "ScaledObject")["spec"]["triggers"]
        for trigger in triggers:
            settings = trigger["metadata"]
            self.assertEqual((trigger["type"], settings["serverAddress"]), ("prometheus", address))
            self.assertEqual(settings["ignoreNullValues"], "false")
            self.assertNotIn("authenticationRef", trigger)
        self.assertEqual([trigger["metadata"]["threshold"] for trigger in triggers], ["90", "180"])
        lag_seconds = {"serverAddress": address, "perWorkerThreshold": 0}
        manifests = render(scaled("keda", trigger="lag-seconds", lagSeconds=lag_seconds))
        self.assertEqual(len(one(manifests, "ScaledObject")["spec"]["triggers"]), 1)
        # KEDA does not ask the brokers, so it does not sign in to them.
        sasl = {"kafka": {"properties": {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}}}
        more = {"trigger": "lag-seconds", "lagSeconds": {"serverAddress": address}, "secretTargetRef": [
            {"parameter": "ca", "name": "c", "key": "ca.crt"}]}
        self.assertTrue(none(render({**scaled("keda", **more), "config": sasl}), "TriggerAuthentication"))

    def test_by_seconds_from_zero(self):
        values = scaled("keda", trigger="lag-seconds", lagThreshold=5, sasl={"secret": "user"},
                        lagSeconds={"serverAddress": "http://prometheus:9090", "lagThreshold": 70000})
        values["autoscaling"]["minReplicas"] = 0
        values["config"] = {"kafka": {"properties": {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}}}
        manifests = render(values)
        seconds, _, lag = one(manifests, "ScaledObject")["spec"]["triggers"]
        self.assertEqual((seconds["type"], seconds["metadata"]["ignoreNullValues"]), ("prometheus", "true"))
        self.assertEqual((lag["type"], lag["metadata"]["lagThreshold"]), ("kafka", "70000"))
        self.assertNotIn("authenticationRef", seconds)
        self.assertEqual(lag["authenticationRef"]["name"], one(manifests, "TriggerAuthentication")["metadata"]["name"])

    def test_by_seconds_of_another_query(self):
        reference = {"name": "prometheus", "kind": "ClusterTriggerAuthentication"}
        lag_seconds = {"serverAddress": "https://p", "query": "sum(work)", "authenticationRef": reference,
                       "metadata": {"authModes": "bearer", "ignoreNullValues": True}}
        (trigger,) = one(render(scaled("keda", trigger="lag-seconds", lagSeconds=lag_seconds)), "ScaledObject")["spec"]["triggers"]
        self.assertEqual(trigger["metadata"]["query"], "sum(work)")
        self.assertEqual(trigger["metadata"]["authModes"], "bearer")
        self.assertEqual(trigger["metadata"]["ignoreNullValues"], "true")
        self.assertEqual(trigger["authenticationRef"], reference)

    def test_by_processor_time(self):
        manifests = render(scaled("hpa", targetCPUUtilizationPercentage=60))
        self.assertNotIn("replicas", one(manifests, "StatefulSet")["spec"])
        spec = one(manifests, "HorizontalPodAutoscaler")["spec"]
        self.assertEqual(spec["metrics"][0]["resource"]["target"]["averageUtilization"], 60)
        self.assertEqual(spec["maxReplicas"], 6)
        self.assertTrue(none(manifests, "ScaledObject"))


class Network(unittest.TestCase):
    def ports(self, values):
        policy = one(render({"networkPolicy": {"enabled": True}, **values}), "NetworkPolicy")["spec"]
        return [sorted({port["port"] for port in rule["ports"]}) for rule in policy["egress"]]

    def test_ports_follow_the_configuration(self):
        self.assertEqual(self.ports({}), [[53], [9092], [443]])
        config = {"kafka": {"brokers": "a:9096, b:9097"}, "s3": {"endpoint": "http://minio:9000/"}}
        self.assertEqual(self.ports({"config": config}), [[53], [9096, 9097], [9000]])
        self.assertEqual(self.ports({"config": {"s3": {"endpoint": "http://minio"}}})[2], [80])
        self.assertEqual(self.ports({"config": {"s3": {"endpoint": "https://minio/x:1"}}})[2], [443])

    def test_the_smoke_test_gets_through(self):
        peers = [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]
        manifests = render({"networkPolicy": {"enabled": True, "scrapeFrom": peers}})
        (rule,) = one(manifests, "NetworkPolicy")["spec"]["ingress"]
        labels = one(manifests, "Pod")["metadata"]["labels"].items()
        self.assertEqual(rule["from"][0], peers[0])
        self.assertLessEqual(rule["from"][1]["podSelector"]["matchLabels"].items(), labels)


class Extras(unittest.TestCase):
    def test_manifests_are_filled_in(self):
        text = "apiVersion: v1\nkind: Secret\nmetadata: {name: '{{ .Release.Name }}-a'}"
        mapping = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "{{ .Release.Name }}-b"}}
        manifests = render({"extraManifests": [text, mapping]})
        self.assertEqual(one(manifests, "Secret")["metadata"]["name"], "cap-a")
        self.assertEqual(one(manifests, "Endpoints")["metadata"]["name"], "cap-b")

    def test_nothing_is_on_that_needs_an_operator(self):
        kinds = {manifest["apiVersion"].split("/")[0] for manifest in render()}
        self.assertEqual(kinds, {"v1", "apps", "policy"})

    def test_there_need_be_no_smoke_test(self):
        self.assertTrue(none(render({"smokeTest": {"enabled": False}}), "Pod"))
