-- depends: 0004_credentials
-- Content of a brand: stored objects, images for training (assets) with captions, documents, and uploads.
set role onbrand_owner;

create table storage.buckets (id text primary key);
insert into storage.buckets values ('training-data'), ('models'), ('generated-content'), ('brand-documents');
alter table storage.buckets enable row level security;
alter table storage.buckets force row level security;

-- One row for each stored file; rows of other tables refer to it by its name. brand_id is the first part of the object's name.
create table storage.objects (
  bucket_id text not null references storage.buckets,
  name text not null collate "C" check (octet_length(name) <= 900
    and name ~ '^[a-z0-9][a-z0-9-]{1,62}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){1,6}$'),
  brand_id text not null generated always as (split_part(name, '/', 1)) stored,
  user_id uuid not null,
  content_type text not null check (char_length(content_type) <= 100),
  bytes bigint not null check (bytes >= 0),
  created_at timestamptz not null default clock_timestamp(),
  primary key (brand_id, bucket_id, name)
);

create table app.brand_assets (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  user_id uuid not null,
  name text not null check (char_length(name) between 1 and 255),
  type text not null default 'image' check (type in ('image')),
  object text not null check (object in ('logo', 'product', 'person', 'packaging', 'other')),
  object_name text not null collate "C" check (split_part(object_name, '/', 1) = brand_id),
  sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
  content_type text not null check (content_type in ('image/png', 'image/jpeg', 'image/webp')),
  bytes bigint not null check (bytes > 0),
  width integer not null check (width > 0),
  height integer not null check (height > 0),
  metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object' and octet_length(metadata::text) <= 20000),
  created_at timestamptz not null default clock_timestamp(),
  features jsonb not null default '{}' check (jsonb_typeof(features) = 'object' and octet_length(features::text) <= 4000),
  primary key (brand_id, id),
  unique (brand_id, object_name),
  unique (brand_id, sha256)
);
create index brand_assets_by_time on app.brand_assets (brand_id, created_at, id);

create table app.asset_captions (
  brand_id text not null,
  asset_id uuid not null,
  version integer not null check (version > 0),
  caption text not null check (char_length(caption) <= 5000),
  user_id uuid not null,
  created_at timestamptz not null default clock_timestamp(),
  primary key (brand_id, asset_id, version),
  foreign key (brand_id, asset_id) references app.brand_assets (brand_id, id) on delete cascade
);

-- Documents of a brand (guidelines, voice and tone). One row is one version. A version never changes; a new one is
-- added.
create table app.documents (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  user_id uuid not null,
  name text not null check (name ~ '^[a-z0-9][a-z0-9-]{0,59}$' and name <> 'incoming'),
  version integer not null check (version > 0),
  title text not null check (char_length(title) between 1 and 200),
  object_name text not null collate "C" check (split_part(object_name, '/', 1) = brand_id),
  content_type text not null check (content_type in ('application/pdf', 'text/markdown; charset=utf-8')),
  bytes bigint not null check (bytes > 0),
  num_pages integer check (num_pages > 0),
  sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
  created_at timestamptz not null default clock_timestamp(),
  primary key (brand_id, id),
  unique (brand_id, name, version),
  unique (brand_id, object_name),
  check ((num_pages is null) = (content_type <> 'application/pdf'))
);
create index documents_by_time on app.documents (brand_id, created_at, id);

-- Uploads that go directly to the object store. A client announces an upload here, sends the bytes to a signed link,
-- and the platform then checks them. The bytes as sent are in the brand's folder `incoming`. They have no row in
-- storage.objects, so no link opens them.
create table app.uploads (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  user_id uuid not null,
  kind text not null check (kind in ('image', 'zip', 'document')),
  filename text not null check (char_length(filename) between 1 and 255),
  content_type text not null check (content_type in
    ('image/png', 'image/jpeg', 'image/webp', 'application/zip', 'application/pdf', 'text/markdown')),
  bytes bigint not null check (bytes > 0),
  sha256 text check (sha256 ~ '^[0-9a-f]{64}$'),
  object text not null default 'other' check (object in ('logo', 'product', 'person', 'packaging', 'other')),
  caption text check (char_length(caption) <= 5000),
  metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object' and octet_length(metadata::text) <= 20000),
  status text not null default 'pending' check (status in ('pending', 'completed', 'refused', 'canceled', 'expired')),
  error jsonb check (octet_length(error::text) <= 5000),
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz not null default clock_timestamp() + interval '1 hour',
  ended_at timestamptz,
  swept_at timestamptz,
  primary key (brand_id, id),
  check ((status = 'pending') = (ended_at is null))
);
create index uploads_by_time on app.uploads (brand_id, created_at, id);
create index uploads_kept_by_brand on app.uploads (brand_id) where swept_at is null;
-- For private.sweep_uploads and private.num_open_uploads, which look at all brands. They are on expressions, so that no
-- plan of a caller can use them to find rows (see brand_users_by_user in 0002_brands).
create index uploads_by_end on app.uploads ((expires_at at time zone 'UTC'));
alter index app.uploads_by_end alter column 1 set statistics 0;
create index uploads_open_by_user on app.uploads (uuid_send(user_id)) where status = 'pending';
alter index app.uploads_open_by_user alter column 1 set statistics 0;

-- The assets or the document that an upload became, in the order of the file. A zip becomes many assets.
create table app.upload_objects (
  brand_id text not null,
  upload_id uuid not null,
  index integer not null check (index >= 0),
  asset_id uuid,
  document_id uuid,
  primary key (brand_id, upload_id, index),
  check (num_nonnulls(asset_id, document_id) = 1),
  foreign key (brand_id, upload_id) references app.uploads (brand_id, id) on delete cascade,
  foreign key (brand_id, asset_id) references app.brand_assets (brand_id, id) on delete cascade,
  foreign key (brand_id, document_id) references app.documents (brand_id, id) on delete cascade
);
create index upload_objects_by_asset on app.upload_objects (brand_id, asset_id) where asset_id is not null;
create index upload_objects_by_document on app.upload_objects (brand_id, document_id) where document_id is not null;

-- A link is valid for one upload. An upload that has ended cannot be opened again.
create function app.tg_upload_guard() returns trigger
language plpgsql set search_path = '' as $$
begin
  if old.status <> 'pending' and to_jsonb(new) - 'swept_at' is distinct from to_jsonb(old) - 'swept_at' then
    raise exception 'the upload has ended' using errcode = 'OB002';
  end if;
  if old.status = 'pending' and new.status = 'completed' and old.expires_at < clock_timestamp() then
    raise exception 'the upload has expired' using errcode = 'OB002';
  end if;
  return new;
end $$;
create trigger upload_guard before update on app.uploads for each row execute function app.tg_upload_guard();
create trigger creator_is_member after insert on app.uploads
  for each row when (current_user = 'authenticated') execute function private.tg_creator_is_member();

-- Isolation and scopes.
call app.enable_brand_isolation('storage.objects');
call app.enable_brand_isolation('app.brand_assets');
call app.enable_brand_isolation('app.asset_captions');
call app.enable_brand_isolation('app.documents');
call app.enable_brand_isolation('app.uploads');
call app.enable_brand_isolation('app.upload_objects');
call app.require_scope('storage.objects', 'insert', 'upload');
create policy scope_delete on storage.objects as restrictive for delete to authenticated using (
  case when bucket_id = 'generated-content' and split_part(name, '/', 2) <> 'samples'
    then (select private.has_scope('generate')) else (select private.has_scope('manage')) end);
call app.require_scope('app.brand_assets', 'insert', 'upload');
call app.require_scope('app.brand_assets', 'delete', 'manage');
call app.require_scope('app.asset_captions', 'insert', 'upload');
call app.require_scope('app.documents', 'insert', 'upload');
call app.require_scope('app.documents', 'delete', 'manage');
call app.require_scope('app.uploads', 'insert', 'upload');
call app.require_scope('app.uploads', 'update', 'upload');
call app.require_scope('app.upload_objects', 'insert', 'upload');

-- Grants and permissive policies. Those of brand_system that depend on a ticket are in 0011_background. Here and in later migrations
-- nobody gets TRUNCATE, REFERENCES or TRIGGER, and inserts and updates are granted by column.
grant select on storage.buckets to authenticated, brand_system;
create policy anyone_select on storage.buckets for select to authenticated, brand_system using (true);

grant select, delete on storage.objects to authenticated;
grant select on storage.objects to brand_system;
grant insert (bucket_id, name, user_id, content_type, bytes) on storage.objects to authenticated, brand_system;
create policy member_select on storage.objects for select to authenticated using (true);
create policy member_insert on storage.objects for insert to authenticated
  with check (bucket_id in ('training-data', 'brand-documents') and user_id = (select private.uid()));
create policy owner_or_admin_delete on storage.objects for delete to authenticated using (
  case when bucket_id = 'generated-content' and split_part(name, '/', 2) <> 'samples'
    then user_id = (select private.uid())
    else (select private.is_admin()) end);

grant select, delete on app.brand_assets to authenticated;
grant insert (brand_id, user_id, name, type, object, object_name, sha256, content_type, bytes, width, height, metadata,
  features)
  on app.brand_assets to authenticated;
grant select on app.brand_assets to brand_system;
create policy member_select on app.brand_assets for select to authenticated using (true);
create policy member_insert on app.brand_assets for insert to authenticated
  with check (user_id = (select private.uid()));
create policy admin_delete on app.brand_assets for delete to authenticated
  using ((select private.is_admin()));

grant select on app.asset_captions to authenticated, brand_system;
grant insert (brand_id, asset_id, version, caption, user_id) on app.asset_captions to authenticated;
create policy member_select on app.asset_captions for select to authenticated using (true);
create policy member_insert on app.asset_captions for insert to authenticated
  with check (user_id = (select private.uid()));

grant select, delete on app.documents to authenticated;
grant insert (brand_id, user_id, name, version, title, object_name, content_type, bytes, num_pages, sha256)
  on app.documents to authenticated;
create policy member_select on app.documents for select to authenticated using (true);
create policy member_insert on app.documents for insert to authenticated
  with check (user_id = (select private.uid()));
create policy admin_delete on app.documents for delete to authenticated
  using ((select private.is_admin()));

grant select on app.uploads, app.upload_objects to authenticated;
grant insert (brand_id, user_id, kind, filename, content_type, bytes, sha256, object, caption, metadata)
  on app.uploads to authenticated;
grant update (status, error, ended_at) on app.uploads to authenticated;
create policy member_select on app.uploads for select to authenticated using (true);
create policy member_insert on app.uploads for insert to authenticated
  with check (user_id = (select private.uid()));
create policy owner_update on app.uploads for update to authenticated
  using (user_id = (select private.uid())) with check (user_id = (select private.uid()));

-- A completed upload of the caller may name assets and documents of the same member: this policy checks the upload, the
-- restrictive one below the asset or document.
grant insert (brand_id, upload_id, index, asset_id, document_id) on app.upload_objects to authenticated;
create policy member_select on app.upload_objects for select to authenticated using (true);
create policy owner_insert on app.upload_objects for insert to authenticated with check (exists (
  select 1 from app.uploads u where u.brand_id = upload_objects.brand_id and u.id = upload_objects.upload_id
    and u.user_id = (select private.uid()) and u.status = 'completed')
  and (document_id is not null or exists (select 1 from app.brand_assets a
    where a.brand_id = upload_objects.brand_id and a.id = upload_objects.asset_id and a.user_id = (select private.uid()))));
create policy own_document on app.upload_objects as restrictive for insert to authenticated with check (
  document_id is null or exists (select 1 from app.documents d where d.brand_id = upload_objects.brand_id
    and d.id = upload_objects.document_id and d.user_id = (select private.uid())));

reset role;
