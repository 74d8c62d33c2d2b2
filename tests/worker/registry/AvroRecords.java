import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.io.EncoderFactory;

/**
 * Records in Confluent's wire format, by Apache Avro's own library: what a consumer or a producer
 * written in Java does, apart from everything under test.
 *
 * read URL [FILE]: framed records, one a line in Base64, to JSON; each by the schema of its id,
 * resolved to the schema in FILE. write URL ID: records in Avro's JSON, one a line, to such lines.
 */
public class AvroRecords {
  static final ObjectMapper JSON = new ObjectMapper();

  static Schema schema(String url, int id) throws Exception {
    HttpRequest request = HttpRequest.newBuilder(URI.create(url + "/schemas/ids/" + id)).build();
    HttpResponse<String> response =
        HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
    JsonNode answer = JSON.readTree(response.body());
    return new Schema.Parser().parse(answer.get("schema").asText());
  }

  static String read(String url, byte[] record, Schema wanted) throws Exception {
    ByteBuffer buffer = ByteBuffer.wrap(record);
    if (buffer.get() != 0) throw new IllegalArgumentException("no magic byte");
    Schema written = schema(url, buffer.getInt());
    BinaryDecoder decoder =
        DecoderFactory.get().binaryDecoder(record, 5, record.length - 5, null);
    Object value =
        new GenericDatumReader<Object>(written, wanted == null ? written : wanted)
            .read(null, decoder);
    if (!decoder.isEnd()) throw new IllegalArgumentException("bytes are left");
    return value.toString();
  }

  static byte[] write(String url, int id, String json) throws Exception {
    Schema schema = schema(url, id);
    Object value =
        new GenericDatumReader<Object>(schema)
            .read(null, DecoderFactory.get().jsonDecoder(schema, json));
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    bytes.write(0);
    bytes.write(ByteBuffer.allocate(4).putInt(id).array());
    BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(bytes, null);
    new GenericDatumWriter<Object>(schema).write(value, encoder);
    encoder.flush();
    return bytes.toByteArray();
  }

  public static void main(String[] arguments) throws Exception {
    boolean reads = arguments[0].equals("read");
    String url = arguments[1];
    Schema wanted =
        reads && arguments.length > 2
            ? new Schema.Parser().parse(Files.readString(Path.of(arguments[2])))
            : null;
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      if (reads) {
        System.out.println(read(url, Base64.getDecoder().decode(line), wanted));
      } else {
        byte[] framed = write(url, Integer.parseInt(arguments[2]), line);
        System.out.println(Base64.getEncoder().encodeToString(framed));
      }
    }
  }
}
