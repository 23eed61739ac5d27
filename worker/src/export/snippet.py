from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("my-dico", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("my-dico", trust_remote_code=True)
pixels = processor(images=[Image.open("photo.jpg")], return_tensors="pt").pixel_values
tokens = model.generate(pixel_values=pixels, num_beams=5, max_length=30)
print(processor.batch_decode(tokens, skip_special_tokens=True))
